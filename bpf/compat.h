/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Differences between kernels are decided before compilation: kmemwatch reads the running kernel's BTF and passes what it
 * found as -D macros. No kernel struct is declared or copied here.
 *
 *   OFF_struct__member   offset of a member, bytes; absent when the kernel has no such member
 *   HAVE_*               1 when the kernel has it, else absent
 *
 * Where a macro is used, a comment names the kernel commit and the first release.
 */

/* Read one member through a pointer that may be stale: an unreadable address gives 0, never a crash. */
#define KMW_READ(type, base, member)                                                                                   \
	({                                                                                                             \
		type _value = 0;                                                                                       \
		bpf_probe_read_kernel(&_value, sizeof(_value), (void *)((u64)(base) + OFF_##member));                  \
		_value;                                                                                                \
	})

/*
 * Load a member through a pointer whose type the verifier knows: one instruction instead of a helper call. Assembly,
 * because bcc would rewrite a C dereference into a helper call.
 */
#define KMW_LOAD(base, offset)                                                                                         \
	({                                                                                                             \
		u64 _value;                                                                                            \
		asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(_value) : "r"(base), "i"(offset));                        \
		_value;                                                                                                \
	})

/* A pointer argument of fentry and fexit as a number: the verifier allows no arithmetic with a pointer whose type it knows. */
#define KMW_SCALAR(pointer)                                                                                            \
	({                                                                                                             \
		u64 _pointer = (pointer), _number = 0;                                                                 \
		bpf_probe_read_kernel(&_number, sizeof(_number), &_pointer);                                           \
		_number;                                                                                               \
	})

/* A program stays on its CPU and in its task, so the compiler may call these helpers once, however often they are used. */
#define KMW_CONST __attribute__((const))
static u32 (*const this_cpu)(void) KMW_CONST = (void *)BPF_FUNC_get_smp_processor_id;

/* kernfs id of the directory that a css belongs to: the cgroup id that `stat -c %i` shows; 0 when unreadable. */
static __always_inline u64 css_cgroup_id(u64 css)
{
	u64 cgroup = KMW_READ(u64, css, cgroup_subsys_state__cgroup);
	u64 kn = KMW_READ(u64, cgroup, cgroup__kn);

	return KMW_READ(u64, kn, kernfs_node__id);
}

/*
 * css of the memcg that the current task works for: active_memcg where the kernel charges another memcg (Linux kernel commit
 * d46eb14b735b ("fs: fsnotify: account fsnotify metadata to kmemcg") (in v4.19)), else the memcg that the task is in.
 */
#ifdef HAVE_CURRENT_TASK_BTF
/* The verifier knows the type of the task since Linux kernel commit 3ca1032ab7ab ("bpf: Introduce helper
 * bpf_get_current_task_btf()") (in v5.11): five loads instead of five helper calls. */
static u64 (*const this_task)(void) KMW_CONST = (void *)BPF_FUNC_get_current_task_btf;

static __always_inline u64 current_css(void)
{
	return KMW_LOAD(KMW_LOAD(this_task(), OFF_task_struct__cgroups), OFF_css_set__subsys + 8 * MEMORY_CGRP_ID);
}

static __always_inline u64 current_memcg(void)
{
	u64 active = KMW_LOAD(this_task(), OFF_task_struct__active_memcg);

	return active ? active : current_css();
}

/* Serial number of the css of current_memcg(). */
#define CURRENT_SERIAL_NR(css) KMW_LOAD(css, OFF_cgroup_subsys_state__serial_nr)
#else
static __always_inline u64 current_css(void)
{
	u64 css_set = KMW_READ(u64, bpf_get_current_task(), task_struct__cgroups);
	u64 css = 0;

	bpf_probe_read_kernel(&css, sizeof(css), (void *)(css_set + OFF_css_set__subsys + 8 * MEMORY_CGRP_ID));
	return css;
}

static __always_inline u64 current_memcg(void)
{
	u64 active = KMW_READ(u64, bpf_get_current_task(), task_struct__active_memcg);

	return active ? active : current_css();
}

#define CURRENT_SERIAL_NR(css) KMW_READ(u64, css, cgroup_subsys_state__serial_nr)
#endif
