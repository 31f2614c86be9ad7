/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Signals alloc and free: objects per (cache, memcg).
 *
 * An allocation counts for the memcg of the task that makes it, or for the one that the task works for (active_memcg). A free
 * counts for the memcg that is charged for the object, whichever task frees it: most objects are freed in an RCU callback,
 * where the current task has nothing to do with them. Objects that no memcg is charged for count under cgroup id 0.
 *
 * Sizes are not counted: every object of a cache takes kmem_cache.size bytes. On kernels where memcgs have child caches,
 * objects of all children count for the root cache.
 */

#ifdef GFP_ACCOUNT
#define ALLOCATED(gfp_flags) (((gfp_flags) & GFP_ACCOUNT) / GFP_ACCOUNT) /* PAIR_PLAIN_OBJECTS or PAIR_ACCOUNT_OBJECTS */
#else
#define ALLOCATED(gfp_flags) PAIR_PLAIN_OBJECTS
#endif

static __always_inline int count_alloc(u64 cache, u64 gfp_flags, u64 objects)
{
	u64 css = current_memcg();

	count_pair(cache, css, CURRENT_SERIAL_NR(css), ALLOCATED(gfp_flags), objects);
	return 0;
}

#if (defined(HAVE_CACHE_IN_TP_ALLOC) && defined(USE_raw_tp_kmem_cache_alloc)) || defined(USE_fexit_kmem_cache_alloc)
#define MAX_FAILED_CACHES 1024

/* Allocations that failed, by address of the root cache. Only with hooks that have the cache of an object that does not
 * exist. Not per CPU, as failures are rare. */
BPF_HASH(failed_allocations, u64, u64, MAX_FAILED_CACHES);

static __always_inline void count_failure(u64 cache)
{
	u64 root = root_cache(cache), zero = 0, *count = failed_allocations.lookup_or_try_init(&root, &zero);

	if (count)
		__sync_fetch_and_add(count, 1);
	else
		count_lost(LOST_PAIR_MAP_FULL, 1);
}
#else
#define count_failure(cache)
#endif

static __always_inline int count_alloc_object(u64 object, u64 gfp_flags)
{
	u64 cache;
	int error = find_cache(object, &cache);

	if (error >= 2)
		count_lost(LOST_CACHE_UNREADABLE, 1);
	return error ? 0 : count_alloc(root_cache(cache), gfp_flags, 1);
}

/* `error`: what finding the slab returned. */
static __always_inline int count_free_in(u64 object, struct slab_of *slab, int error)
{
	u64 css, serial_nr = NOBODY;

	if (error) {
		if (error >= 2)
			count_lost(LOST_CACHE_UNREADABLE, 1);
		return 0;
	}
	css = object_memcg(object, slab);
	if (css)
		serial_nr = KMW_READ(u64, css, cgroup_subsys_state__serial_nr);
	count_pair(root_cache(slab->cache), css, serial_nr, PAIR_FREED_OBJECTS, 1);
	return 0;
}

static __always_inline int count_free(u64 object)
{
	struct slab_of slab;

	return count_free_in(object, &slab, find_slab(object, &slab));
}

/* `cache`: that of the object, as the tracepoint has it. */
static __always_inline int count_free_of(u64 object, u64 cache)
{
	struct slab_of slab;

	return count_free_in(object, &slab, find_owners(object, cache, &slab));
}

/*
 * The kernel never starts a program that already runs on the same CPU. So when an interrupt hits while a program counts an
 * object, the kernel skips the program for everything that the interrupt frees, and that may be all that an RCU grace
 * period has released. Each of these hooks therefore has two programs. The first counts the object and remembers it. The
 * second (..._missed) runs right after the first for the same event, and counts only objects that were not remembered. So
 * when an interrupt hits inside one of them, the other one counts what the interrupt frees. Both miss it only when the
 * interrupted program has itself interrupted the other: that is `recursion_misses` of the first less `missed_runs`.
 */
#define REMEMBERED 8

struct counted_objects {
	u64 next;                /* index of the next object, modulo REMEMBERED */
	u64 object[REMEMBERED];  /* counted by the first program, and not yet seen by the second; 0: none */
	u64 unused[7];           /* so that no two CPUs share a cache line */
};

/* Signals that have a second program. */
enum missed_signal { MISSED_ALLOC, MISSED_FREE, MISSED_SIGNALS };

/* MISSED_SIGNALS entries for each CPU. Not a per-CPU array, as its lookup is a call before v6.10. */
BPF_ARRAY(counted, struct counted_objects, POSSIBLE_CPUS * MISSED_SIGNALS);
BPF_PERCPU_ARRAY(missed_runs, u64, MISSED_SIGNALS); /* runs that the first program missed, and the second made up for */

static __always_inline struct counted_objects *counted_objects_of(u32 which)
{
	u32 index = this_cpu() * MISSED_SIGNALS + which;

	return counted.lookup(&index);
}

static __always_inline void remember_counted(int which, u64 object)
{
	struct counted_objects *objects = counted_objects_of(which);
	u64 index;

	if (!objects)
		return;
	index = objects->next % REMEMBERED;
	objects->object[index] = object;
	/* An interrupt here uses the same index, and has removed its own objects before it ends. */
	asm volatile("" ::: "memory");
	objects->next = index + 1;
}

/* Whether the first program has counted the object. Removes it, and later ones that the second program never saw. */
static __always_inline int take_counted(int which, u64 object)
{
	struct counted_objects *objects = counted_objects_of(which);
	u64 index;
	int i;

	if (!objects)
		return 1;
#pragma unroll
	for (i = 1; i <= REMEMBERED; i++) {
		index = (objects->next - i) % REMEMBERED;
		if (objects->object[index] == object) {
			objects->object[index] = 0;
			objects->next = index;
			return 1;
		}
	}
	return 0;
}

static __always_inline void count_missed_run(int which)
{
	u64 *count = missed_runs.lookup(&which);

	if (count)
		__sync_fetch_and_add(count, 1);
}

/* Both programs of a hook call this before they count: whether the object has been counted. */
static __always_inline int is_counted(int second, int which, u64 object)
{
	return second && take_counted(which, object);
}

/* And this after they have counted. `object`: of the event; no other event that is under way on this CPU has the same. */
static __always_inline int end_counting(int second, int which, u64 object)
{
	if (second)
		count_missed_run(which);
	else
		remember_counted(which, object);
	return 0;
}

#define FIRST 0
#define SECOND 1

/*
 * Programs of signal alloc.
 *
 * kmem:kmem_cache_alloc(call_site, object, cache, gfp_flags) since Linux kernel commit 2c1d697fb8ba ("mm/slab_common: drop
 * kmem_alloc & avoid dereferencing fields when not using") (in v6.1); before, as kmem:kmalloc still does, (call_site, object,
 * bytes_req, bytes_alloc, gfp_flags).
 */
static __always_inline int count_tp_kmem_cache_alloc(struct bpf_raw_tracepoint_args *ctx, int second)
{
	u64 object = ctx->args[1];

	if (is_counted(second, MISSED_ALLOC, object))
		return 0;
#ifdef HAVE_CACHE_IN_TP_ALLOC
	if (object)
		count_alloc(ctx->args[2], ctx->args[3], 1);
	else
		count_failure(ctx->args[2]);
#else
	count_alloc_object(object, ctx->args[4]);
#endif
	return end_counting(second, MISSED_ALLOC, object);
}

static __always_inline int count_tp_kmalloc(struct bpf_raw_tracepoint_args *ctx, int second)
{
	u64 object = ctx->args[1];

	if (is_counted(second, MISSED_ALLOC, object))
		return 0;
	count_alloc_object(object, ctx->args[4]);
	return end_counting(second, MISSED_ALLOC, object);
}

#ifdef USE_raw_tp_kmem_cache_alloc
int raw_tp_kmem_cache_alloc(struct bpf_raw_tracepoint_args *ctx)
{
	return count_tp_kmem_cache_alloc(ctx, FIRST);
}

int raw_tp_kmem_cache_alloc_missed(struct bpf_raw_tracepoint_args *ctx)
{
	return count_tp_kmem_cache_alloc(ctx, SECOND);
}
#endif

#ifdef USE_raw_tp_kmem_cache_alloc_node
int raw_tp_kmem_cache_alloc_node(struct bpf_raw_tracepoint_args *ctx)
{
	return count_tp_kmem_cache_alloc(ctx, FIRST);
}

int raw_tp_kmem_cache_alloc_node_missed(struct bpf_raw_tracepoint_args *ctx)
{
	return count_tp_kmem_cache_alloc(ctx, SECOND);
}
#endif

#ifdef USE_raw_tp_kmalloc
int raw_tp_kmalloc(struct bpf_raw_tracepoint_args *ctx)
{
	return count_tp_kmalloc(ctx, FIRST);
}

int raw_tp_kmalloc_missed(struct bpf_raw_tracepoint_args *ctx)
{
	return count_tp_kmalloc(ctx, SECOND);
}
#endif

#ifdef USE_raw_tp_kmalloc_node
int raw_tp_kmalloc_node(struct bpf_raw_tracepoint_args *ctx)
{
	return count_tp_kmalloc(ctx, FIRST);
}

int raw_tp_kmalloc_node_missed(struct bpf_raw_tracepoint_args *ctx)
{
	return count_tp_kmalloc(ctx, SECOND);
}
#endif

/* kmem_cache_alloc(cache, gfp), kmem_cache_alloc_lru(cache, lru, gfp) and their like, at return: the object, or NULL. */
static __always_inline int count_returned(unsigned long long *ctx, int gfp_at, int return_at, int second)
{
	u64 object = ctx[return_at];

	if (is_counted(second, MISSED_ALLOC, object))
		return 0;
	if (object)
		count_alloc(KMW_SCALAR(ctx[0]), ctx[gfp_at], 1);
	else
		count_failure(KMW_SCALAR(ctx[0]));
	return end_counting(second, MISSED_ALLOC, object);
}

#ifdef USE_fexit_kmem_cache_alloc
int fexit_kmem_cache_alloc(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmem_cache_alloc, RETURN_AT_kmem_cache_alloc, FIRST);
}

int fexit_kmem_cache_alloc_missed(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmem_cache_alloc, RETURN_AT_kmem_cache_alloc, SECOND);
}
#endif

#ifdef USE_fexit_kmem_cache_alloc_lru
int fexit_kmem_cache_alloc_lru(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmem_cache_alloc_lru, RETURN_AT_kmem_cache_alloc_lru, FIRST);
}

int fexit_kmem_cache_alloc_lru_missed(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmem_cache_alloc_lru, RETURN_AT_kmem_cache_alloc_lru, SECOND);
}
#endif

#ifdef USE_fexit_kmem_cache_alloc_node
int fexit_kmem_cache_alloc_node(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmem_cache_alloc_node, RETURN_AT_kmem_cache_alloc_node, FIRST);
}

int fexit_kmem_cache_alloc_node_missed(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmem_cache_alloc_node, RETURN_AT_kmem_cache_alloc_node, SECOND);
}
#endif

#ifdef USE_fexit___kmem_cache_alloc_node
int fexit___kmem_cache_alloc_node(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT___kmem_cache_alloc_node, RETURN_AT___kmem_cache_alloc_node, FIRST);
}

int fexit___kmem_cache_alloc_node_missed(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT___kmem_cache_alloc_node, RETURN_AT___kmem_cache_alloc_node, SECOND);
}
#endif

#ifdef USE_fexit_kmem_cache_alloc_trace
int fexit_kmem_cache_alloc_trace(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmem_cache_alloc_trace, RETURN_AT_kmem_cache_alloc_trace, FIRST);
}

int fexit_kmem_cache_alloc_trace_missed(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmem_cache_alloc_trace, RETURN_AT_kmem_cache_alloc_trace, SECOND);
}
#endif

#ifdef USE_fexit_kmem_cache_alloc_node_trace
int fexit_kmem_cache_alloc_node_trace(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmem_cache_alloc_node_trace, RETURN_AT_kmem_cache_alloc_node_trace, FIRST);
}

int fexit_kmem_cache_alloc_node_trace_missed(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmem_cache_alloc_node_trace, RETURN_AT_kmem_cache_alloc_node_trace, SECOND);
}
#endif

#ifdef USE_fexit_kmalloc_trace
int fexit_kmalloc_trace(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmalloc_trace, RETURN_AT_kmalloc_trace, FIRST);
}

int fexit_kmalloc_trace_missed(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmalloc_trace, RETURN_AT_kmalloc_trace, SECOND);
}
#endif

#ifdef USE_fexit_kmalloc_node_trace
int fexit_kmalloc_node_trace(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmalloc_node_trace, RETURN_AT_kmalloc_node_trace, FIRST);
}

int fexit_kmalloc_node_trace_missed(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT_kmalloc_node_trace, RETURN_AT_kmalloc_node_trace, SECOND);
}
#endif

#ifdef USE_fexit___kmalloc_cache
int fexit___kmalloc_cache(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT___kmalloc_cache, RETURN_AT___kmalloc_cache, FIRST);
}

int fexit___kmalloc_cache_missed(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT___kmalloc_cache, RETURN_AT___kmalloc_cache, SECOND);
}
#endif

#ifdef USE_fexit___kmalloc_cache_node
int fexit___kmalloc_cache_node(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT___kmalloc_cache_node, RETURN_AT___kmalloc_cache_node, FIRST);
}

int fexit___kmalloc_cache_node_missed(unsigned long long *ctx)
{
	return count_returned(ctx, GFP_AT___kmalloc_cache_node, RETURN_AT___kmalloc_cache_node, SECOND);
}
#endif

/* __kmalloc(size, gfp), and __kmalloc_node(size, buckets, gfp, node) of kernels that have buckets (by v6.12), at return. */
static __always_inline int count_returned_kmalloc(unsigned long long *ctx, int gfp_at, int return_at, int second)
{
	u64 object = ctx[return_at];

	if (is_counted(second, MISSED_ALLOC, object))
		return 0;
	count_alloc_object(object, ctx[gfp_at]);
	return end_counting(second, MISSED_ALLOC, object);
}

#ifdef USE_fexit___kmalloc
int fexit___kmalloc(unsigned long long *ctx)
{
	return count_returned_kmalloc(ctx, GFP_AT___kmalloc, RETURN_AT___kmalloc, FIRST);
}

int fexit___kmalloc_missed(unsigned long long *ctx)
{
	return count_returned_kmalloc(ctx, GFP_AT___kmalloc, RETURN_AT___kmalloc, SECOND);
}
#endif

#ifdef USE_fexit___kmalloc_node
int fexit___kmalloc_node(unsigned long long *ctx)
{
	return count_returned_kmalloc(ctx, GFP_AT___kmalloc_node, RETURN_AT___kmalloc_node, FIRST);
}

int fexit___kmalloc_node_missed(unsigned long long *ctx)
{
	return count_returned_kmalloc(ctx, GFP_AT___kmalloc_node, RETURN_AT___kmalloc_node, SECOND);
}
#endif

#ifdef USE_fexit___kmalloc_track_caller
int fexit___kmalloc_track_caller(unsigned long long *ctx)
{
	return count_returned_kmalloc(ctx, GFP_AT___kmalloc_track_caller, RETURN_AT___kmalloc_track_caller, FIRST);
}

int fexit___kmalloc_track_caller_missed(unsigned long long *ctx)
{
	return count_returned_kmalloc(ctx, GFP_AT___kmalloc_track_caller, RETURN_AT___kmalloc_track_caller, SECOND);
}
#endif

#ifdef USE_fexit___kmalloc_node_track_caller
int fexit___kmalloc_node_track_caller(unsigned long long *ctx)
{
	return count_returned_kmalloc(ctx, GFP_AT___kmalloc_node_track_caller, RETURN_AT___kmalloc_node_track_caller, FIRST);
}

int fexit___kmalloc_node_track_caller_missed(unsigned long long *ctx)
{
	return count_returned_kmalloc(ctx, GFP_AT___kmalloc_node_track_caller, RETURN_AT___kmalloc_node_track_caller, SECOND);
}
#endif

/* At entry, where it is not known whether the allocation will fail. */
#ifdef USE_kprobe_kmem_cache_alloc
int kprobe_kmem_cache_alloc(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_kmem_cache_alloc);
	return count_alloc(PT_REGS_PARM1(ctx), PT_REGS_GFP(ctx, GFP_AT_kmem_cache_alloc), 1);
}
#endif

#ifdef USE_kprobe_kmem_cache_alloc_lru
int kprobe_kmem_cache_alloc_lru(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_kmem_cache_alloc_lru);
	return count_alloc(PT_REGS_PARM1(ctx), PT_REGS_GFP(ctx, GFP_AT_kmem_cache_alloc_lru), 1);
}
#endif

#ifdef USE_kprobe_kmem_cache_alloc_node
int kprobe_kmem_cache_alloc_node(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_kmem_cache_alloc_node);
	return count_alloc(PT_REGS_PARM1(ctx), PT_REGS_GFP(ctx, GFP_AT_kmem_cache_alloc_node), 1);
}
#endif

#ifdef USE_kprobe___kmem_cache_alloc_node
int kprobe___kmem_cache_alloc_node(struct pt_regs *ctx)
{
	count_run(RUN_kprobe___kmem_cache_alloc_node);
	return count_alloc(PT_REGS_PARM1(ctx), PT_REGS_GFP(ctx, GFP_AT___kmem_cache_alloc_node), 1);
}
#endif

#ifdef USE_kprobe_kmem_cache_alloc_trace
int kprobe_kmem_cache_alloc_trace(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_kmem_cache_alloc_trace);
	return count_alloc(PT_REGS_PARM1(ctx), PT_REGS_GFP(ctx, GFP_AT_kmem_cache_alloc_trace), 1);
}
#endif

#ifdef USE_kprobe_kmem_cache_alloc_node_trace
int kprobe_kmem_cache_alloc_node_trace(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_kmem_cache_alloc_node_trace);
	return count_alloc(PT_REGS_PARM1(ctx), PT_REGS_GFP(ctx, GFP_AT_kmem_cache_alloc_node_trace), 1);
}
#endif

#ifdef USE_kprobe_kmalloc_trace
int kprobe_kmalloc_trace(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_kmalloc_trace);
	return count_alloc(PT_REGS_PARM1(ctx), PT_REGS_GFP(ctx, GFP_AT_kmalloc_trace), 1);
}
#endif

#ifdef USE_kprobe_kmalloc_node_trace
int kprobe_kmalloc_node_trace(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_kmalloc_node_trace);
	return count_alloc(PT_REGS_PARM1(ctx), PT_REGS_GFP(ctx, GFP_AT_kmalloc_node_trace), 1);
}
#endif

#ifdef USE_kprobe___kmalloc_cache
int kprobe___kmalloc_cache(struct pt_regs *ctx)
{
	count_run(RUN_kprobe___kmalloc_cache);
	return count_alloc(PT_REGS_PARM1(ctx), PT_REGS_GFP(ctx, GFP_AT___kmalloc_cache), 1);
}
#endif

#ifdef USE_kprobe___kmalloc_cache_node
int kprobe___kmalloc_cache_node(struct pt_regs *ctx)
{
	count_run(RUN_kprobe___kmalloc_cache_node);
	return count_alloc(PT_REGS_PARM1(ctx), PT_REGS_GFP(ctx, GFP_AT___kmalloc_cache_node), 1);
}
#endif

/* Signal alloc-bulk: kmem_cache_alloc_bulk(cache, gfp, size, objects) returns size, or 0 if it has allocated nothing. */
#ifdef USE_fexit_kmem_cache_alloc_bulk
int fexit_kmem_cache_alloc_bulk(unsigned long long *ctx)
{
	if ((u32)ctx[RETURN_AT_kmem_cache_alloc_bulk])
		count_alloc(KMW_SCALAR(ctx[0]), ctx[1], ctx[2]);
	return 0;
}
#endif

#ifdef USE_kprobe_kmem_cache_alloc_bulk
int kprobe_kmem_cache_alloc_bulk(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_kmem_cache_alloc_bulk);
	return count_alloc(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
}
#endif

/*
 * Programs of signal free.
 *
 * kmem:kmem_cache_free(call_site, object, cache) since v6.1.
 */
static __always_inline int count_tp_kmem_cache_free(struct bpf_raw_tracepoint_args *ctx, int second)
{
	u64 object = ctx->args[1];

	if (is_counted(second, MISSED_FREE, object))
		return 0;
	count_free_of(object, ctx->args[2]);
	return end_counting(second, MISSED_FREE, object);
}

#ifdef USE_raw_tp_kmem_cache_free
int raw_tp_kmem_cache_free(struct bpf_raw_tracepoint_args *ctx)
{
	return count_tp_kmem_cache_free(ctx, FIRST);
}

int raw_tp_kmem_cache_free_missed(struct bpf_raw_tracepoint_args *ctx)
{
	return count_tp_kmem_cache_free(ctx, SECOND);
}
#endif

static __always_inline int count_freed(u64 object, int second)
{
	if (is_counted(second, MISSED_FREE, object))
		return 0;
	count_free(object);
	return end_counting(second, MISSED_FREE, object);
}

/* kmem:kfree(call_site, object) */
#ifdef USE_raw_tp_kfree
int raw_tp_kfree(struct bpf_raw_tracepoint_args *ctx)
{
	return count_freed(ctx->args[1], FIRST);
}

int raw_tp_kfree_missed(struct bpf_raw_tracepoint_args *ctx)
{
	return count_freed(ctx->args[1], SECOND);
}
#endif

/* kmem_cache_free(cache, object) */
#ifdef USE_fentry_kmem_cache_free
int fentry_kmem_cache_free(unsigned long long *ctx)
{
	return count_freed(ctx[1], FIRST);
}

int fentry_kmem_cache_free_missed(unsigned long long *ctx)
{
	return count_freed(ctx[1], SECOND);
}
#endif

#ifdef USE_kprobe_kmem_cache_free
int kprobe_kmem_cache_free(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_kmem_cache_free);
	return count_free(PT_REGS_PARM2(ctx));
}
#endif

/* kfree(object) */
#ifdef USE_fentry_kfree
int fentry_kfree(unsigned long long *ctx)
{
	return count_freed(KMW_COPY_ARG0(ctx), FIRST);
}

int fentry_kfree_missed(unsigned long long *ctx)
{
	return count_freed(KMW_COPY_ARG0(ctx), SECOND);
}
#endif

#ifdef USE_kprobe_kfree
int kprobe_kfree(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_kfree);
	return count_free(PT_REGS_PARM1(ctx));
}
#endif

/*
 * The kernel's own batches have at most a page of pointers. These frees are counted in the hash only: with slots, 512 objects
 * would take more jumps than the verifier follows.
 */
static __always_inline int count_free_bulk(u64 size, u64 objects)
{
	struct slab_of slab;
	u64 object, css;
	int i, error;

	for (i = 0; i < PAGE_SIZE / 8; i++) {
		if (i >= size)
			return 0;
		object = 0;
		bpf_probe_read_kernel(&object, sizeof(object), (void *)(objects + i * 8));
		error = find_slab(object, &slab);
		if (error >= 2)
			count_lost(LOST_CACHE_UNREADABLE, 1);
		if (!error) {
			css = object_memcg(object, &slab);
			count_in_hash(root_cache(slab.cache), css ? css_cgroup_id(css) : 0, PAIR_FREED_OBJECTS, 1);
		}
	}
	count_lost(LOST_CACHE_UNREADABLE, size - i);
	return 0;
}

#ifdef OFF_slab_sheaf__objects
static __always_inline int count_free_sheaf(u64 sheaf)
{
	return count_free_bulk(KMW_READ(u32, sheaf, slab_sheaf__size), sheaf + OFF_slab_sheaf__objects);
}
#endif

/* Signal free-bulk: kmem_cache_free_bulk(cache or NULL, size, objects). */
#ifdef USE_fentry_kmem_cache_free_bulk
int fentry_kmem_cache_free_bulk(unsigned long long *ctx)
{
	return count_free_bulk(ctx[1], ctx[2]);
}
#endif

#ifdef USE_kprobe_kmem_cache_free_bulk
int kprobe_kmem_cache_free_bulk(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_kmem_cache_free_bulk);
	return count_free_bulk(PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
}
#endif

/* rcu:rcu_invoke_kfree_bulk_callback(rcu name, number, objects) */
#ifdef USE_raw_tp_rcu_invoke_kfree_bulk_callback
int raw_tp_rcu_invoke_kfree_bulk_callback(struct bpf_raw_tracepoint_args *ctx)
{
	return count_free_bulk(ctx->args[1], ctx->args[2]);
}
#endif

/* __rcu_free_sheaf_prepare(cache, sheaf): after a grace period, takes the owners from the objects that kfree_rcu() freed. */
#ifdef USE_fentry___rcu_free_sheaf_prepare
int fentry___rcu_free_sheaf_prepare(unsigned long long *ctx)
{
	return count_free_sheaf(KMW_SCALAR(ctx[1]));
}
#endif

#ifdef USE_kprobe___rcu_free_sheaf_prepare
int kprobe___rcu_free_sheaf_prepare(struct pt_regs *ctx)
{
	count_run(RUN_kprobe___rcu_free_sheaf_prepare);
	return count_free_sheaf(PT_REGS_PARM2(ctx));
}
#endif
