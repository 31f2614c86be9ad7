/* SPDX-License-Identifier: GPL-2.0-only */
/* From an object to its slab, its cache, and the memcg that is charged for it. */

/*
 * [0]: the address that the struct page of an object at address 0 would have, if the direct map began there. The page of an
 * object is page_base[0] + object / PAGE_SIZE * sizeof(struct page). User space fills it in after loading. It is 0 until
 * then, and objects whose cache is found through their page are not counted.
 */
BPF_ARRAY(page_base, u64, 1);

/*
 * The first 64 bytes of a struct page, which since Linux kernel commit d122019bf061 ("mm: Split slab into its own type")
 * (in v5.17) are also described as struct slab. Reading all of them at once costs less than reading two members.
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

#ifdef KFENCE
/* Bits 16 to 30 of slab.counters; `word`: the 8 bytes that they are in. */
#define OBJECTS(word) ((word) >> (8 * (OFF_slab__objects % 8)) & 0x7fff)
#define OBJECTS_WORD (OFF_slab__objects & ~7)
#endif

struct slab_of {
	u64 start;  /* address of the first object */
	u64 cache;
	u64 owners; /* address of the vector of owners, one entry per object; 0: no memcg is charged */
	u64 stride; /* bytes from one entry to the next */
	u64 memcg;  /* memcg that the whole slab is charged to; 0: it is not charged as a whole */
	u64 page;   /* address of its first struct page */
#ifdef KFENCE
	u64 objects; /* how many it has room for */
#endif
};

/*
 * Head page of the tail page at `page`. Bit 0 of its compound_info is set; the other bits are the address of the head, or
 * (Linux kernel patch "mm: rework compound_head() for power-of-2 sizeof(struct page)", by v7.2) a mask that turns the
 * tail's address into the head's. A mask is a small negative number; no struct page is in the last 4 GB of the address space.
 */
static __always_inline u64 head_of_tail(u64 page, u64 compound_info)
{
	return (s64)compound_info > -(1LL << 32) ? page & compound_info : compound_info - 1;
}

/* `obj_exts`: of struct slab. Its low bits say which kind of vector it is. After a failed allocation the vector is 0. */
static __always_inline void set_owners(struct slab_of *slab, u64 obj_exts)
{
	slab->owners = obj_exts & ~7ULL;
	slab->memcg = 0;
#ifdef CHILD_CACHES
	/* A slab of a child cache has a memcg there, without flags: it is charged as a whole. No branches: programs of bulk
	 * frees do this 512 times, and the verifier accepts 8,192 jumps in a row. */
	u64 whole = 0 - (((obj_exts & 7) - 1) >> 63); /* all ones or 0 */

	slab->memcg = slab->owners & whole;
	slab->owners &= ~whole;
#endif
}

/* Reads the first `bytes` of the head page of an object to `page`, and sets its address. Returns 0: found; 1: the object is
 * in no slab (a large kmalloc); 2: page_base is not set yet; 3: the page is unreadable. */
static __always_inline int read_head(u64 object, struct page_words *page, u32 bytes, u64 *address, u64 *base)
{
	int zero = 0;
	u64 *base_value = page_base.lookup(&zero);

	if (!base_value || !*base_value)
		return 2;
	/* Slabs are in the direct map only, in the kernel's half of the addresses; kvmalloc() may give other addresses. */
	if (!(object >> 63))
		return 1;
	*base = *base_value;
	*address = *base + object / PAGE_SIZE * PAGE_STRUCT_BYTES;
	if (bpf_probe_read_kernel(page, bytes, (void *)*address))
		return 3;
	if (WORD(*page, page__compound_head) & 1) {
		*address = head_of_tail(*address, WORD(*page, page__compound_head));
		if (bpf_probe_read_kernel(page, bytes, (void *)*address))
			return 3;
	}
	return !is_slab(page);
}

/* Bytes up to the cache and the mark of a slab; each word that is read costs. */
#ifdef PGTY_SLAB
#define CACHE_BYTES sizeof(struct page_words)
#else
#define CACHE_BYTES (OFF_slab__slab_cache + 8)
#endif

static __always_inline int find_cache(u64 object, u64 *cache)
{
	struct page_words page;
	u64 address, base;
	int error = read_head(object, &page, CACHE_BYTES, &address, &base);

	if (!error)
		*cache = WORD(page, slab__slab_cache);
	return error;
}

static __always_inline int find_slab(u64 object, struct slab_of *slab)
{
	struct page_words page;
	u64 base;
	int error = read_head(object, &page, sizeof(page), &slab->page, &base);

	if (error)
		return error;
	slab->start = (slab->page - base) / PAGE_STRUCT_BYTES * PAGE_SIZE;
	slab->cache = WORD(page, slab__slab_cache);
	set_owners(slab, WORD(page, slab__obj_exts));
	slab->stride = OBJ_EXT_BYTES;
#ifdef KFENCE
	slab->objects = OBJECTS(WORD(page, slab__objects));
#endif
#ifdef OFF_slab__stride
	slab->stride = (u32)(WORD(page, slab__stride) >> (8 * (OFF_slab__stride % 8)));
#endif
	return 0;
}

/* The same for an object whose cache is known. Its page is then a slab's, and often a tail page: reading one word of each
 * costs less than reading both as a whole. */
static __always_inline int find_owners(u64 object, u64 cache, struct slab_of *slab)
{
	int zero = 0;
	u64 *base = page_base.lookup(&zero);
	u64 compound_info;

	if (!base || !*base)
		return 2;
	slab->page = *base + object / PAGE_SIZE * PAGE_STRUCT_BYTES;
	compound_info = KMW_READ(u64, slab->page, page__compound_head);
	if (compound_info & 1)
		slab->page = head_of_tail(slab->page, compound_info);
	slab->start = (slab->page - *base) / PAGE_STRUCT_BYTES * PAGE_SIZE;
	slab->cache = cache;
#ifdef KFENCE
	/* One read for both members: it costs little more than reading one. */
	u64 words[(OFF_slab__obj_exts - OBJECTS_WORD) / 8 + 1] = {};

	bpf_probe_read_kernel(words, sizeof(words), (void *)(slab->page + OBJECTS_WORD));
	slab->objects = OBJECTS(words[0]);
	set_owners(slab, words[(OFF_slab__obj_exts - OBJECTS_WORD) / 8]);
#else
	set_owners(slab, KMW_READ(u64, slab->page, slab__obj_exts));
#endif
	slab->stride = OBJ_EXT_BYTES;
#ifdef OFF_slab__stride
	slab->stride = KMW_READ(u32, slab->page, slab__stride);
#endif
	return 0;
}

/* The root cache. Objects are counted there, as child caches come and go, and there are as many as memcgs. */
static __always_inline u64 root_cache(u64 cache)
{
#ifdef CHILD_CACHES
	u64 root = KMW_READ(u64, cache, kmem_cache__memcg_params__root_cache);

	return root | (cache & (((root | (0 - root)) >> 63) - 1)); /* root ? root : cache */
#else
	return cache;
#endif
}

/* The memcg that is charged for the object, or 0. A struct mem_cgroup begins with its css. */
static __always_inline u64 object_memcg(u64 object, struct slab_of *slab)
{
	u64 objcg = 0, index;
	u32 size;

	if (!slab->owners)
		return slab->memcg;
	size = KMW_READ(u32, slab->cache, kmem_cache__size);
	if (!size)
		return 0;
	index = (object - slab->start) / size;
#ifdef KFENCE
	/*
	 * An object of KFENCE has a page for itself, lies anywhere in it, and has the only entry of the vector. The kernel
	 * calls is_kfence_address(); here the slab says that it has one object, and then index 0 is right.
	 * No branch: programs of bulk frees do this 512 times.
	 */
	index &= (((slab->objects ^ 1) - 1) >> 63) - 1;
#endif
	bpf_probe_read_kernel(&objcg, sizeof(objcg), (void *)(slab->owners + index * slab->stride));
	return objcg ? KMW_READ(u64, objcg, obj_cgroup__memcg) : 0;
}
