/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The maps and structs that all programs share. Python reads structs, enums and numbers from the files of bpf/
 * (kmemwatch/maps/structs.py). Every member has its unit. Counters only grow while the programs are attached.
 */

/* Why an event is missing from the figures. Index of `lost`; without LOST_ and in small letters, the reason in metrics. */
enum lost_reason {
	LOST_RINGBUF_FULL,        /* lifecycle events that found the ring buffer full */
	LOST_PAIR_MAP_FULL,       /* objects whose (cache, cgroup) pair found the map full, and failures whose cache did */
	LOST_CHARGE_MAP_FULL,     /* charges and uncharges whose cgroup found the map full */
	LOST_CGROUP_UNREADABLE,   /* objects, charges and lifecycle events whose memcg could not be read */
	LOST_CACHE_UNREADABLE,    /* objects whose slab could not be read */
	LOST_RECHARGE_MAP_FULL,   /* recharges whose (cache, from, to) found the map full */
	LOST_RECHARGE_UNFOLLOWED, /* recharge checks whose outcome is not known */
	LOST_REASONS,
};

BPF_PERCPU_ARRAY(lost, u64, LOST_REASONS);

static __always_inline void count_lost(int reason, u64 times)
{
	u64 *count = lost.lookup(&reason);

	if (count)
		__sync_fetch_and_add(count, times);
}

/* Events are rare, so each is sent to user space. Without EVENT_ and in small letters, the kind in `kmemwatch events`. */
enum event_kind {
	EVENT_ONLINE = 1,
	EVENT_OFFLINE,
	EVENT_RELEASED,
	EVENT_ID_GIVEN,
	EVENT_ID_FREED,
	EVENT_CACHE_CREATED,
	EVENT_CACHE_DESTROYED,
	EVENT_RECHARGE,         /* only the first one of a cache between two memcgs */
	EVENT_RECHARGE_FAILED,
};

struct lifecycle_event {
	u64 at_ns;       /* CLOCK_MONOTONIC */
	u64 cgroup_id;   /* kernfs id; 0: the hook does not have it */
	u64 parent_id;   /* kernfs id; 0: unknown */
	u32 kind;        /* enum event_kind */
	u32 pid;         /* process (tgid) that caused it; a kernel worker for offline and released */
	char comm[16];
};

struct online_event {
	struct lifecycle_event event;
	char name[256];  /* kernfs_node.name: last component of the path, at most NAME_MAX bytes and a NUL */
};

#define CACHE_NAME_BYTES 128

/* EVENT_ID_GIVEN and those after it. A member that does not apply is 0, or -1. */
struct slab_event {
	struct lifecycle_event event;
	u64 cache;       /* address of the struct kmem_cache */
	u64 from_id;     /* kernfs id of the memcg that lost a slab; 0: no memcg was charged for it */
	u64 pages;       /* of that slab */
	s32 kmemcg_id;
	u32 unused;
	char name[CACHE_NAME_BYTES]; /* kmem_cache.name; longer ones are cut */
};

BPF_RINGBUF_OUTPUT(events, RING_PAGES);

static __always_inline void fill_event(struct lifecycle_event *event, u32 kind, u64 cgroup_id, u64 parent_css)
{
	event->at_ns = bpf_ktime_get_ns();
	event->cgroup_id = cgroup_id;
	event->parent_id = css_cgroup_id(parent_css);
	event->kind = kind;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
}
