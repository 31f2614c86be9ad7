/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A program is a hook with a body: KMW_<kind>(target, body) makes the function that bcc loads and the kernel calls. The
 * loader writes these lines from the plan. Arguments that a body does not use are not read.
 */
#include <uapi/linux/ptrace.h>

#define KMW_RAW_TP(target, body)                                                                                       \
	int kmw_tp_##target(struct bpf_raw_tracepoint_args *ctx)                                                       \
	{                                                                                                              \
		BODY_##body(ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3], ctx->args[4]);                     \
		return 0;                                                                                              \
	}

/* KFUNC_PROBE is bcc's, for fentry: it names the function so that bcc knows what to attach to, and gives it `ctx`. */
#define KMW_FENTRY(target, body)                                                                                       \
	KFUNC_PROBE(target)                                                                                            \
	{                                                                                                              \
		BODY_##body(ctx[0], ctx[1], ctx[2], ctx[3], ctx[4]);                                                   \
		return 0;                                                                                              \
	}

/* fexit. The fifth argument of the body is the return value, which follows the `nargs` arguments. */
#define KMW_FEXIT(target, body, nargs)                                                                                 \
	KRETFUNC_PROBE(target)                                                                                         \
	{                                                                                                              \
		BODY_##body(ctx[0], ctx[1], ctx[2], ctx[3], ctx[nargs]);                                               \
		return 0;                                                                                              \
	}

/*
 * The same for a function whose first argument has a type that the verifier does not let through, such as kfree(const
 * void *): copied from the context instead of loaded.
 */
#define KMW_COPY_ARG0(ctx)                                                                                             \
	({                                                                                                             \
		u64 _arg = 0;                                                                                          \
		bpf_probe_read_kernel(&_arg, sizeof(_arg), (void *)(ctx));                                             \
		_arg;                                                                                                  \
	})

#define KMW_FENTRY_COPY(target, body)                                                                                  \
	KFUNC_PROBE(target)                                                                                            \
	{                                                                                                              \
		u64 first = KMW_COPY_ARG0(ctx);                                                                        \
		BODY_##body(first, 0, 0, 0, 0);                                                                        \
		return 0;                                                                                              \
	}

/*
 * While a system call works on a map, or another program runs, the kernel does not run the programs of kprobes on that CPU,
 * and before v6.7 it does not count that. So they count their own runs, which are compared with the hits of the probe.
 * `enum runs` is written by the loader, if there are such programs.
 */
#ifdef COUNT_RUNS
BPF_PERCPU_ARRAY(runs, u64, RUNS);

static __always_inline void count_run(int which)
{
	u64 *count = runs.lookup(&which);

	if (count)
		__sync_fetch_and_add(count, 1);
}
#endif

#define KMW_KPROBE(target, body)                                                                                       \
	int kmw_kp_##target(struct pt_regs *ctx)                                                                       \
	{                                                                                                              \
		count_run(RUN_kp_##target);                                                                            \
		BODY_##body(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx), PT_REGS_PARM4(ctx),            \
			    PT_REGS_PARM5(ctx));                                                                       \
		return 0;                                                                                              \
	}

/* The fifth argument of the body is the return value; the others are gone by then. */
#define KMW_KRETPROBE(target, body)                                                                                    \
	int kmw_kr_##target(struct pt_regs *ctx)                                                                       \
	{                                                                                                              \
		count_run(RUN_kr_##target);                                                                            \
		BODY_##body(0ULL, 0ULL, 0ULL, 0ULL, PT_REGS_RC(ctx));                                                  \
		return 0;                                                                                              \
	}

/*
 * Pairs of programs for one hook, see alloc.bpf.c: _FIRST counts and notes, _AGAIN counts what has no note. `which` is
 * an enum noted.
 */
#define KMW_FIRST(body, which, a0, a1, a2, a3, a4)                                                                     \
	BODY_##body(a0, a1, a2, a3, a4);                                                                               \
	note(which, KEY_##body(a0, a1, a2, a3, a4))

#define KMW_AGAIN(body, which, a0, a1, a2, a3, a4)                                                                     \
	if (!take_note(which, KEY_##body(a0, a1, a2, a3, a4))) {                                                       \
		BODY_##body(a0, a1, a2, a3, a4);                                                                       \
		count_recovered(which);                                                                                \
	}

#define KMW_RAW_TP_PAIR(target, body, which)                                                                           \
	int kmw_tp_##target(struct bpf_raw_tracepoint_args *ctx)                                                       \
	{                                                                                                              \
		KMW_FIRST(body, which, ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3], ctx->args[4]);          \
		return 0;                                                                                              \
	}                                                                                                              \
	int kmw_ag_##target(struct bpf_raw_tracepoint_args *ctx)                                                       \
	{                                                                                                              \
		KMW_AGAIN(body, which, ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3], ctx->args[4]);          \
		return 0;                                                                                              \
	}

#define KMW_FENTRY_PAIR(target, body, which)                                                                           \
	KFUNC_PROBE(target)                                                                                            \
	{                                                                                                              \
		KMW_FIRST(body, which, ctx[0], ctx[1], ctx[2], ctx[3], ctx[4]);                                        \
		return 0;                                                                                              \
	}                                                                                                              \
	int kmw_ag_##target(unsigned long long *ctx)                                                                   \
	{                                                                                                              \
		KMW_AGAIN(body, which, ctx[0], ctx[1], ctx[2], ctx[3], ctx[4]);                                        \
		return 0;                                                                                              \
	}

#define KMW_FENTRY_COPY_PAIR(target, body, which)                                                                      \
	KFUNC_PROBE(target)                                                                                            \
	{                                                                                                              \
		u64 first = KMW_COPY_ARG0(ctx);                                                                        \
		KMW_FIRST(body, which, first, 0, 0, 0, 0);                                                             \
		return 0;                                                                                              \
	}                                                                                                              \
	int kmw_ag_##target(unsigned long long *ctx)                                                                   \
	{                                                                                                              \
		u64 first = KMW_COPY_ARG0(ctx);                                                                        \
		KMW_AGAIN(body, which, first, 0, 0, 0, 0);                                                             \
		return 0;                                                                                              \
	}

#define KMW_FEXIT_PAIR(target, body, nargs, which)                                                                     \
	KRETFUNC_PROBE(target)                                                                                         \
	{                                                                                                              \
		KMW_FIRST(body, which, ctx[0], ctx[1], ctx[2], ctx[3], ctx[nargs]);                                    \
		return 0;                                                                                              \
	}                                                                                                              \
	int kmw_ag_##target(unsigned long long *ctx)                                                                   \
	{                                                                                                              \
		KMW_AGAIN(body, which, ctx[0], ctx[1], ctx[2], ctx[3], ctx[nargs]);                                    \
		return 0;                                                                                              \
	}
