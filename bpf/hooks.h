/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How programs are written. Each is a function named after its kind and its hook, for example fexit_kmem_cache_alloc or
 * raw_tp_kfree. The kinds are those of kmemwatch/attach/plan.py:
 *
 *   raw_tp_*     struct bpf_raw_tracepoint_args *ctx: ctx->args[n] is argument n of the tracepoint
 *   fentry_*     unsigned long long *ctx: ctx[n] is argument n of the function
 *   fexit_*      the same; RETURN_AT_<function> is the index of the return value, behind the arguments
 *   kprobe_*     struct pt_regs *ctx: PT_REGS_PARM1(ctx) and so on
 *   kretprobe_*  struct pt_regs *ctx: PT_REGS_RC(ctx); the arguments are gone
 *   test_run_*   attached to nothing: user space runs it with BPF_PROG_TEST_RUN
 *
 * A function that the kernel calls kmem_cache_alloc_noprof (since v6.10) is kmem_cache_alloc here. The plan compiles a
 * program by defining USE_<its name>. Where the index of an argument differs between kernels, the plan defines that as well:
 * GFP_AT_<function>, from 0.
 */
#include <uapi/linux/ptrace.h>

/* An argument of fentry that the verifier does not let a program load because of its type, such as that of
 * kfree(const void *): it is copied from the context instead. */
#define KMW_COPY_ARG0(ctx)                                                                                             \
	({                                                                                                             \
		u64 _arg = 0;                                                                                          \
		bpf_probe_read_kernel(&_arg, sizeof(_arg), (void *)(ctx));                                             \
		_arg;                                                                                                  \
	})

/* The flags of an allocator, in a kprobe. */
#define PT_REGS_GFP(ctx, gfp_at) ((gfp_at) == 2 ? PT_REGS_PARM3(ctx) : PT_REGS_PARM2(ctx))

/*
 * While a system call works on a map, or another program runs, the kernel does not run the programs of kprobes on that CPU,
 * and before v6.7 it does not count that. So these programs count their own runs, and user space compares them with the hits
 * of the probe. The plan numbers the programs of kprobes: RUN_<name of the program>; RUNS is how many there are.
 */
#ifdef RUNS
BPF_PERCPU_ARRAY(runs, u64, RUNS);

static __always_inline void count_run(int which)
{
	u64 *count = runs.lookup(&which);

	if (count)
		__sync_fetch_and_add(count, 1);
}
#endif
