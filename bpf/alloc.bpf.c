/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Signals alloc and free: objects per (cache, memcg).
 *
 * An allocation belongs to the memcg of the task that makes it, or to the one the task works for (active_memcg). A free
 * belongs to the memcg that the object is charged to, whoever frees it: most objects die in an RCU callback, where the
 * current task is anybody. Objects that nobody is charged for are freed under cgroup id 0.
 *
 * Sizes are not counted: every object of a cache takes kmem_cache.size bytes. On kernels where memcgs have child caches,
 * objects are counted at the root cache, whichever child they are in.
 */

#ifdef GFP_ACCOUNT
#define ALLOCATED(gfp_flags) (((gfp_flags) & GFP_ACCOUNT) / GFP_ACCOUNT) /* PAIR_OBJECTS or PAIR_ACCOUNT_OBJECTS */
#else
#define ALLOCATED(gfp_flags) PAIR_OBJECTS
#endif

static __always_inline int count_alloc(u64 cache, u64 gfp_flags, u64 objects)
{
	u64 css = current_memcg();

	count_pair(cache, css, CURRENT_SERIAL_NR(css), ALLOCATED(gfp_flags), objects);
	return 0;
}

static __always_inline int count_alloc_object(u64 object, u64 gfp_flags)
{
	u64 cache;
	int error = find_cache(object, &cache);

	if (error >= 2)
		count_lost(LOST_NO_CACHE, 1);
	return error ? 0 : count_alloc(root_cache(cache), gfp_flags, 1);
}

/* `error`: of finding the slab. */
static __always_inline int count_free_in(u64 object, struct slab_of *slab, int error)
{
	u64 css, serial_nr = NOBODY;

	if (error) {
		if (error >= 2)
			count_lost(LOST_NO_CACHE, 1);
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

/* `cache`: the one that the kernel has found the object in. */
static __always_inline int count_free_of(u64 object, u64 cache)
{
	struct slab_of slab;

	return count_free_in(object, &slab, find_owners(object, cache, &slab));
}

/*
 * The kernel runs no program inside itself: when an interrupt hits while one of ours counts, it skips it for what the
 * interrupt frees, and that may be everything that an RCU grace period has let go. So each hook has two programs. The
 * first counts and notes the object; the second, which runs right after it for the same event, counts only what has
 * no note. An interrupt inside the first finds the second free, and what it skips in the second the first has counted.
 * What both skip is `recursion_misses` of the first less what the second has `recovered`.
 */
#define NOTES 8

struct notes {
	u64 next;        /* index of the next note, modulo NOTES */
	u64 key[NOTES];  /* objects that the first program has counted and the second has not seen yet; 0: none */
	u64 unused[7];   /* so that no two CPUs have a line in common */
};

/* One for allocations, one for frees: enum noted. Order is shared with decode.py. */
enum noted { NOTED_ALLOC, NOTED_FREE, NOTED };

BPF_ARRAY(noted, struct notes, ALL_NOTES); /* NOTED for each CPU; not a per-CPU array for the reason that slots are none */
BPF_PERCPU_ARRAY(recovered, u64, NOTED); /* events that the second program counted */

static __always_inline struct notes *notes_of(u32 which)
{
	u32 index = this_cpu() * NOTED + which;

	return noted.lookup(&index);
}

static __always_inline void note(int which, u64 key)
{
	struct notes *notes = notes_of(which);
	u64 index;

	if (!notes)
		return;
	index = notes->next % NOTES;
	notes->key[index] = key;
	/* An interrupt here notes in the same place what it has taken back before it ends. */
	asm volatile("" ::: "memory");
	notes->next = index + 1;
}

/* Whether the first program has counted the event; takes its note, and later ones that nobody took, back. */
static __always_inline int take_note(int which, u64 key)
{
	struct notes *notes = notes_of(which);
	u64 index;
	int i;

	if (!notes)
		return 1;
#pragma unroll
	for (i = 1; i <= NOTES; i++) {
		index = (notes->next - i) % NOTES;
		if (notes->key[index] == key) {
			notes->key[index] = 0;
			notes->next = index;
			return 1;
		}
	}
	return 0;
}

static __always_inline void count_recovered(int which)
{
	u64 *count = recovered.lookup(&which);

	if (count)
		__sync_fetch_and_add(count, 1);
}

/* Bodies: what each hook does with its arguments; plan.py says which hook gets which. KEY: the object that the event
 * is about, which no other event that is under way on this CPU is about. */

/* kmem:kmem_cache_alloc since Linux kernel commit 2c1d697fb8ba ("mm/slab_common: drop kmem_alloc & avoid dereferencing
 * fields when not using") (in v6.1): call_site, object, cache, gfp_flags. */
#define BODY_alloc_cache_tp(call_site, object, cache, gfp, a4) ((object) ? count_alloc(cache, gfp, 1) : 0)
/* kmem:kmalloc, and kmem:kmem_cache_alloc before: call_site, object, bytes_req, bytes_alloc, gfp_flags. */
#define BODY_alloc_object_tp(call_site, object, a2, a3, gfp) count_alloc_object(object, gfp)
#define KEY_alloc_cache_tp(call_site, object, a2, a3, a4) (object)
#define KEY_alloc_object_tp(call_site, object, a2, a3, a4) (object)
/* kmem_cache_alloc(cache, gfp), kmem_cache_alloc_lru(cache, lru, gfp) and their like, at return: the object. */
#define BODY_alloc_return1(cache, gfp, a2, a3, object) ((object) ? count_alloc(KMW_SCALAR(cache), gfp, 1) : 0)
#define BODY_alloc_return2(cache, a1, gfp, a3, object) ((object) ? count_alloc(KMW_SCALAR(cache), gfp, 1) : 0)
#define KEY_alloc_return1(a0, a1, a2, a3, object) (object)
#define KEY_alloc_return2(a0, a1, a2, a3, object) (object)
/* The same at entry, where a failure cannot be told from success. */
#define BODY_alloc_gfp1(cache, gfp, a2, a3, a4) count_alloc(cache, gfp, 1)
#define BODY_alloc_gfp2(cache, a1, gfp, a3, a4) count_alloc(cache, gfp, 1)
/* kmem_cache_alloc_bulk(cache, gfp, size, objects): all, or nothing and 0; at entry, where that is not known, and at
 * return. */
#define BODY_alloc_bulk(cache, gfp, size, a3, a4) count_alloc(cache, gfp, size)
#define BODY_alloc_bulk_return(cache, gfp, size, a3, done) ((u32)(done) ? count_alloc(KMW_SCALAR(cache), gfp, size) : 0)
/* __kmalloc(size, gfp) at return, and __kmalloc_node(size, buckets, gfp, node) of kernels that have buckets (by v6.12):
 * the object is the return value. */
#define BODY_kmalloc_return1(a0, gfp, a2, a3, object) count_alloc_object(object, gfp)
#define BODY_kmalloc_return2(a0, a1, gfp, a3, object) count_alloc_object(object, gfp)
#define KEY_kmalloc_return1(a0, a1, a2, a3, object) (object)
#define KEY_kmalloc_return2(a0, a1, a2, a3, object) (object)
/* kmem:kfree: call_site, object. kmem:kmem_cache_free since v6.1: call_site, object, cache. */
#define BODY_free_cache_tp(call_site, object, cache, a3, a4) count_free_of(object, cache)
#define KEY_free_cache_tp(call_site, object, a2, a3, a4) (object)
#define BODY_free_tp(call_site, object, a2, a3, a4) count_free(object)
#define BODY_free_entry(cache, object, a2, a3, a4) count_free(object)
#define BODY_kfree_entry(object, a1, a2, a3, a4) count_free(object)
#define KEY_free_tp(call_site, object, a2, a3, a4) (object)
#define KEY_free_entry(cache, object, a2, a3, a4) (object)
#define KEY_kfree_entry(object, a1, a2, a3, a4) (object)
/* kmem_cache_free_bulk(cache or NULL, size, objects) */
#define BODY_free_bulk(cache, size, objects, a3, a4) count_free_bulk(size, objects)
/* rcu:rcu_invoke_kfree_bulk_callback: rcu name, number, objects. */
#define BODY_free_bulk_tp(name, size, objects, a3, a4) count_free_bulk(size, objects)
/* __rcu_free_sheaf_prepare(cache, sheaf): objects that kfree_rcu() was given lose their owners, after a grace period. */
#define BODY_free_sheaf(cache, sheaf, a2, a3, a4) count_free_sheaf(KMW_SCALAR(sheaf))

/*
 * The kernel's own batches have at most a page of pointers. Counted in the hash only: with a slot, each object would take
 * more jumps than the verifier follows.
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
			count_lost(LOST_NO_CACHE, 1);
		if (!error) {
			css = object_memcg(object, &slab);
			count_in_hash(root_cache(slab.cache), css ? css_cgroup_id(css) : 0, PAIR_FREED_OBJECTS, 1);
		}
	}
	count_lost(LOST_NO_CACHE, size - i);
	return 0;
}

#ifdef OFF_slab_sheaf__objects
static __always_inline int count_free_sheaf(u64 sheaf)
{
	return count_free_bulk(KMW_READ(u32, sheaf, slab_sheaf__size), sheaf + OFF_slab_sheaf__objects);
}
#endif
