/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What all programs share. kmemwatch/sources/decode.py has the same structs and checks their sizes when it attaches.
 * Every member has its unit. Counters only grow while the programs are attached.
 */

/* Ways in which something that happened is not counted; index of `lost`. decode.py has the same order. */
enum lost_reason {
	LOST_RINGBUF_FULL,  /* lifecycle events that found the ring buffer full */
	LOST_PAIRS_FULL,    /* objects whose (cache, cgroup) pair found the map full */
	LOST_CHARGES_FULL,  /* charges and uncharges whose cgroup found the map full */
	LOST_NO_CGROUP,     /* objects, charges and lifecycle events whose memcg could not be read */
	LOST_NO_CACHE,      /* objects whose slab could not be read */
	LOST_REASONS,
};

BPF_PERCPU_ARRAY(lost, u64, LOST_REASONS);

static __always_inline void count_lost(int reason, u64 times)
{
	u64 *count = lost.lookup(&reason);

	if (count)
		__sync_fetch_and_add(count, times);
}
