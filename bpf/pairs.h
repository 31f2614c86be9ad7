/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Objects of a (cache, memcg) pair are counted in a slot of this CPU if the pair has one, which takes a few instructions,
 * else in a hash. The figure of a pair is the sum of its slots and its entry of the hash. See ADR 13.
 */

/* Owner of objects that no memcg is charged for: in place of a serial number, and of a cgroup id. */
#define NOBODY 0xFFFFFFFFFFFFFFFFULL

/* Pairs that are counted at once. User space removes those of released memcgs. */
#define MAX_PAIRS 65536

/* Slots that a pair can have on a CPU: it takes the first free one of so many neighbours. A power of 2. */
#define SLOT_PLACES 4

/* 2^64 and 2^32 divided by the golden ratio: they spread addresses and serial numbers evenly. */
#define SLOT_HASH 0x9E3779B97F4A7C15ULL
#define OWNER_HASH 0x9E3779B1

enum pair_count {
	PAIR_PLAIN_OBJECTS,   /* allocated without __GFP_ACCOUNT */
	PAIR_ACCOUNT_OBJECTS, /* allocated with it */
	PAIR_FREED_OBJECTS,   /* freed, of those charged to the memcg */
	PAIR_COUNTS,
};

struct pair_key {
	u64 cache;      /* address of the struct kmem_cache of a root cache */
	u64 cgroup_id;  /* kernfs id; 0: no memcg is charged */
};

struct pair_value {
	u64 count[PAIR_COUNTS]; /* objects, by enum pair_count */
};

BPF_PERCPU_HASH(pairs, struct pair_key, struct pair_value, MAX_PAIRS);

/* As long as a line of the CPU's cache. */
struct slot {
	u64 cache;     /* address of the struct kmem_cache of a root cache; 0: the slot is free. Written last. */
	u64 owner;     /* serial number of the css of the memcg, which no other css ever gets; or NOBODY */
	u64 cgroup_id; /* kernfs id; or NOBODY */
	u64 claims;    /* attempts to take the slot: after two at the same time, it stays free for ever */
	struct pair_value value;
	u64 unused; /* room for one more count: leave it out then */
};

/* The slots of CPU 0, then of CPU 1 and so on. Not a per-CPU array, as its lookup is a call before v6.10. Programs take
 * slots, and user space frees them after their memcg is released. */
BPF_F_TABLE("array", u32, struct slot, slots, ALL_SLOTS, BPF_F_MMAPABLE);

/* Atomic: an interrupt may count for the same pair on the same CPU in between. */
static __always_inline void add_to_pair(struct pair_value *value, u64 which, u64 objects)
{
	__sync_fetch_and_add(&value->count[which], objects);
}

static __always_inline void count_in_hash(u64 cache, u64 cgroup_id, u64 which, u64 objects)
{
	struct pair_key key = {.cache = cache, .cgroup_id = cgroup_id};
	struct pair_value zero = {}, *value;

	value = pairs.lookup_or_try_init(&key, &zero);
	if (value)
		add_to_pair(value, which, objects);
	else
		count_lost(LOST_PAIR_MAP_FULL, objects);
}

/* Index of the first of the SLOT_PLACES slots that a pair can have on this CPU; the others are its neighbours. */
static __always_inline u32 slot_index(u64 cache, u64 owner)
{
	u64 hash = (cache ^ owner * OWNER_HASH) * SLOT_HASH;

	return (this_cpu() << SLOT_BITS) + (hash >> (64 - SLOT_BITS));
}

/*
 * Takes a slot if it is free. An interrupt, or another task where programs can be preempted, may try the same at the same
 * time, and before v5.12 the only atomic instruction adds. So every program that tries adds 1 to `claims`, and has the slot
 * if it finds no other addition.
 */
static __always_inline int claim_slot(struct slot *slot, u64 cache, u64 owner, u64 cgroup_id)
{
	if (slot->cache || !owner || !cgroup_id)
		return 0;
	__sync_fetch_and_add(&slot->claims, 1);
	if (*(volatile u64 *)&slot->claims != 1)
		return 0;
	slot->cgroup_id = cgroup_id;
	slot->owner = owner;
	/* A program that sees the cache must see the owner. */
	asm volatile("" ::: "memory");
	*(volatile u64 *)&slot->cache = cache;
	return 1;
}

/* Counts objects for the pair of a root cache and a memcg. `owner`: serial number of the memcg's css, or NOBODY. */
static __always_inline void count_pair(u64 cache, u64 css, u64 owner, u64 which, u64 objects)
{
	u32 place, first = slot_index(cache, owner);
	struct slot *slot;
	u64 cgroup_id;
	int i;

#pragma unroll
	for (i = 0; i < SLOT_PLACES; i++) {
		place = first ^ i;
		slot = slots.lookup(&place);
		if (slot && slot->cache == cache && slot->owner == owner) {
			add_to_pair(&slot->value, which, objects);
			return;
		}
		if (slot && !slot->cache)
			break;
	}
	cgroup_id = owner == NOBODY ? NOBODY : css_cgroup_id(css);
	if (!cgroup_id)
		count_lost(LOST_CGROUP_UNREADABLE, objects);
	else if (slot && claim_slot(slot, cache, owner, cgroup_id))
		add_to_pair(&slot->value, which, objects);
	else
		count_in_hash(cache, cgroup_id == NOBODY ? 0 : cgroup_id, which, objects);
}
