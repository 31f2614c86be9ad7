/* SPDX-License-Identifier: GPL-2.0-only */
/* From an object to its slab: which cache it is of, and whom it is charged to. */

/*
 * [0]: address that the struct page of an object at address 0 would have if the direct map began there; the page of an
 * object is page_base[0] + object / PAGE_SIZE * sizeof(struct page). Filled in by user space after loading; 0 until
 * then, and nothing is counted for objects whose cache is found through their page.
 */
BPF_ARRAY(page_base, u64, 1);

/*
 * The first 64 bytes of a struct page, which since Linux kernel commit d122019bf061 ("mm: Split slab into its own type")
 * (in v5.17) are also described as struct slab. One read of all costs less than two reads of a member each.
 */
struct page_words {
	u64 word[8];
};

#define WORD(page, member) ((page).word[OFF_##member / 8])

static __always_inline int is_slab(struct page_words *page)
{
#ifdef PGTY_SLAB
	/* Linux kernel commit 4ffca5a96678 ("mm: support only one page_type per page") (in v6.12): type in the high byte. */
	u64 other = (u8)(WORD(*page, page__page_type) >> (8 * (OFF_page__page_type % 8) + 24)) ^ PGTY_SLAB;

	return (other - 1) >> 63;
#else
	return WORD(*page, page__flags) >> PG_SLAB & 1;
#endif
}

struct slab_of {
	u64 start;  /* address of the first object */
	u64 cache;
	u64 owners; /* address of the vector of owners, one entry an object; 0: nobody is charged */
	u64 stride; /* bytes from one entry to the next */
	u64 memcg;  /* whom the whole slab is charged to; 0: it is not charged as a whole */
	u64 page;   /* address of its first struct page */
};

/*
 * Head page of the tail page at `page`. Its compound_info has bit 0 set, and else the address of the head, or (Linux
 * kernel patch "mm: rework compound_head() for power-of-2 sizeof(struct page)", by v7.2) a mask that makes the head's
 * address of the tail's. A mask is a small negative number; no struct page lies in the last 4 GB of the address space.
 */
static __always_inline u64 head_of_tail(u64 page, u64 compound_info)
{
	return (s64)compound_info > -(1LL << 32) ? page & compound_info : compound_info - 1;
}

/* 0: found. 1: the object is in no slab (a large kmalloc). 2: not known where pages are. 3: unreadable. */
static __always_inline int find_slab(u64 object, struct slab_of *slab)
{
	int zero = 0;
	u64 *base = page_base.lookup(&zero);
	struct page_words page;
	u64 address;
#ifdef CHILD_CACHES
	u64 whole; /* all ones or 0 */
#endif

	if (!base || !*base)
		return 2;
	/* Large objects of kvmalloc are elsewhere; only the direct map, in the kernel's half, has slabs. */
	if (!(object >> 63))
		return 1;
	address = *base + object / PAGE_SIZE * PAGE_STRUCT_BYTES;
	if (bpf_probe_read_kernel(&page, sizeof(page), (void *)address))
		return 3;
	if (WORD(page, page__compound_head) & 1) {
		address = head_of_tail(address, WORD(page, page__compound_head));
		if (bpf_probe_read_kernel(&page, sizeof(page), (void *)address))
			return 3;
	}
	if (!is_slab(&page))
		return 1;
	slab->start = (address - *base) / PAGE_STRUCT_BYTES * PAGE_SIZE;
	slab->page = address;
	slab->cache = WORD(page, slab__slab_cache);
	/* The low bits say what kind of vector it is; allocation failed is a vector of 0. */
	slab->owners = WORD(page, slab__obj_exts) & ~7ULL;
	slab->memcg = 0;
#ifdef CHILD_CACHES
	/* A slab of a child cache has a memcg there, without any flags: it is charged as a whole. No branches: what frees
	 * in bulk does this 512 times, and the verifier takes 8,192 jumps in a row. */
	whole = 0 - (((WORD(page, slab__obj_exts) & 7) - 1) >> 63);
	slab->memcg = slab->owners & whole;
	slab->owners &= ~whole;
#endif
	slab->stride = OBJ_EXT_BYTES;
#ifdef OFF_slab__stride
	slab->stride = (u32)(WORD(page, slab__stride) >> (8 * (OFF_slab__stride % 8)));
#endif
	return 0;
}

/* The root cache, which everything is counted at: child caches come and go, and are as many as memcgs. */
static __always_inline u64 root_cache(u64 cache)
{
#ifdef CHILD_CACHES
	u64 root = KMW_READ(u64, cache, kmem_cache__memcg_params__root_cache);

	return root | (cache & (((root | (0 - root)) >> 63) - 1)); /* root ? root : cache */
#else
	return cache;
#endif
}

/* cgroup id that the object is charged to; 0 when nobody is. */
static __always_inline u64 object_owner(u64 object, struct slab_of *slab)
{
	u64 objcg = 0;
	u32 size;

	if (!slab->owners)
#ifdef CHILD_CACHES
		return css_cgroup_id(slab->memcg); /* the css is the first member of struct mem_cgroup */
#else
		return 0;
#endif
	size = KMW_READ(u32, slab->cache, kmem_cache__size);
	if (!size)
		return 0;
	bpf_probe_read_kernel(&objcg, sizeof(objcg),
			      (void *)(slab->owners + (object - slab->start) / size * slab->stride));
	if (!objcg)
		return 0;
	return css_cgroup_id(KMW_READ(u64, objcg, obj_cgroup__memcg));
}
