/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Signal slabs: a program that no event runs; user space runs it with BPF_PROG_TEST_RUN. It looks at every struct page, as the
 * kernel has no list of the full slabs of a cache, and adds up the slabs that are charged to a memcg as a whole. So it also
 * finds slabs that are older than kmemwatch's start.
 */

#define CHUNK_PAGES 64

/* Chunks, or slabs, per run. Each costs the verifier 850 instructions at start-up. A run costs 4 us by itself, which is
 * little compared with the 15 us that 2,048 struct pages take. */
#define SCAN_STEPS 32

/* (child cache, memcg) pairs that have slabs at once. */
#define MAX_CHILD_SLABS 65536

struct child_slab_key {
	u64 cache;     /* address of the struct kmem_cache */
	u64 cgroup_id; /* kernfs id of the memcg that the slabs are charged to */
};

struct child_slab_value {
	u64 scan;  /* number of the last scan that found one; slabs that only older scans found are gone */
	u64 pages;
};

struct scan_state {
	u64 page;  /* in, out: address of the next struct page to look at */
	u64 end;   /* in: address behind the last struct page of this range */
	u64 scan;  /* in: number of the scan */
	u64 full;  /* out: slabs that found the map full; only grows */
	u64 chunk; /* address of the first struct page that is in `scan_pages` */
	u64 slabs; /* a bit for each page of the chunk: a slab that has not been counted yet */
};

/* Copies of CHUNK_PAGES struct pages: one read of all costs a fraction of one read each. */
struct scan_chunk {
	u8 bytes[CHUNK_PAGES * PAGE_STRUCT_BYTES];
};

BPF_HASH(child_slabs, struct child_slab_key, struct child_slab_value, MAX_CHILD_SLABS);
BPF_F_TABLE("array", int, struct scan_state, scan, 1, BPF_F_MMAPABLE);
BPF_ARRAY(scan_chunk, struct scan_chunk, 1);

/* Pages of a slab: 2 to the power of the order, which is in the second struct page of a compound page. */
static __always_inline u64 slab_pages(u64 page, u64 flags)
{
	u8 order = 0;

	if (flags >> PG_HEAD & 1)
		bpf_probe_read_kernel(&order, sizeof(order), (void *)(page + COMPOUND_ORDER));
	return 1ULL << (order & 63);
}

static __always_inline struct page_words *page_of_chunk(struct scan_chunk *chunk, u64 index)
{
	return (struct page_words *)(chunk->bytes + index * PAGE_STRUCT_BYTES);
}

static __always_inline void read_chunk(struct scan_state *at, struct scan_chunk *chunk)
{
	u64 count = (at->end - at->page) / PAGE_STRUCT_BYTES, slabs = 0, i;

	if (count > CHUNK_PAGES)
		count = CHUNK_PAGES;
	at->chunk = at->page;
	at->page += count * PAGE_STRUCT_BYTES;
	if (bpf_probe_read_kernel(chunk, count * PAGE_STRUCT_BYTES, (void *)at->chunk))
		return; /* the memory was unplugged, and has no slabs */
#pragma clang loop unroll_count(8)
	for (i = 0; i < CHUNK_PAGES; i++)
		slabs = slabs >> 1 | (u64)is_slab(page_of_chunk(chunk, i)) << (CHUNK_PAGES - 1);
	/* Not `count`: the verifier knows two ranges of values for it, and would go through the loop with each. */
	count = (at->page - at->chunk) / PAGE_STRUCT_BYTES;
	at->slabs = slabs & ~0ULL >> (CHUNK_PAGES - count);
}

static __always_inline u64 lowest_bit(u64 bits)
{
	return __builtin_popcountll((bits & -bits) - 1) & 63;
}

static __always_inline void count_pages(struct scan_state *at, struct child_slab_key *key, u64 pages)
{
	struct child_slab_value *value = child_slabs.lookup(key), first = {};

	if (!value) {
		first.scan = at->scan;
		first.pages = pages;
		at->full += child_slabs.update(key, &first) != 0;
		return;
	}
	if (value->scan != at->scan) {
		value->scan = at->scan;
		value->pages = 0;
	}
	value->pages += pages;
}

static __always_inline void count_slab(struct scan_state *at, struct scan_chunk *chunk)
{
	u64 index = lowest_bit(at->slabs);
	u64 address = at->chunk + index * PAGE_STRUCT_BYTES;
	struct page_words *then = page_of_chunk(chunk, index), now;
	struct child_slab_key key = {};
	u64 pages;

	at->slabs &= at->slabs - 1;
	/* Charged as a whole: a memcg without flags. Slabs of root caches have a vector of owners there, or nothing. */
	if (!WORD(*then, slab__obj_exts) || WORD(*then, slab__obj_exts) & 7)
		return;
	key.cache = WORD(*then, slab__slab_cache);
	pages = slab_pages(address, WORD(*then, page__flags));
	/* The slab may have been freed since, or have moved. A memcg that it is charged to exists. */
	if (bpf_probe_read_kernel(&now, sizeof(now), (void *)address))
		return;
	if (!is_slab(&now) || WORD(now, slab__slab_cache) != key.cache || !WORD(now, slab__obj_exts))
		return;
	key.cgroup_id = css_cgroup_id(WORD(now, slab__obj_exts)); /* the css is the first member of struct mem_cgroup */
	count_pages(at, &key, pages);
}

/* The state is in the map, so that the verifier, which follows every path through the loop, sees one state per turn.
 * Returns 1 when there is nothing more to do. */
static __always_inline int scan_step(struct scan_state *at, struct scan_chunk *chunk)
{
	if (at->slabs)
		count_slab(at, chunk);
	else if (at->page < at->end)
		read_chunk(at, chunk);
	else
		return 1;
	return 0;
}

/* Goes on at `scan.page`. Runs under rcu_read_lock(), so no memcg is freed within a run. */
int test_run_scan(struct bpf_raw_tracepoint_args *ctx)
{
	int zero = 0, i;
	struct scan_state *at = scan.lookup(&zero);
	struct scan_chunk *chunk = scan_chunk.lookup(&zero);

	if (!at || !chunk)
		return -1;
	at->slabs = 0;
	for (i = 0; i < SCAN_STEPS; i++) {
		if (scan_step(at, chunk))
			break;
	}
	/* Look at them again in the next run: they may be other slabs by then. */
	if (at->slabs)
		at->page = at->chunk + lowest_bit(at->slabs) * PAGE_STRUCT_BYTES;
	return 0;
}
