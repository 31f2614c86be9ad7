/* SPDX-License-Identifier: GPL-2.0-only */
/* Events about a cache, a kmemcg_id, or a slab. Only on kernels with child caches. */

#define CACHE_ID(cache) KMW_READ(s32, cache, kmem_cache__memcg_params__id)

static __always_inline struct slab_event *new_slab_event(u32 kind, u64 cgroup_id, u64 cache, s32 kmemcg_id)
{
	struct slab_event *event = events.ringbuf_reserve(sizeof(*event));

	if (!event) {
		count_lost(LOST_RINGBUF_FULL, 1);
		return 0;
	}
	fill_event(&event->event, kind, cgroup_id, 0);
	event->cache = cache;
	event->from_id = 0;
	event->pages = 0;
	event->kmemcg_id = kmemcg_id;
	event->unused = 0;
	event->name[0] = 0;
	if (cache && bpf_probe_read_kernel_str(event->name, sizeof(event->name),
					       (void *)KMW_READ(u64, cache, kmem_cache__name)) < 0)
		event->name[0] = 0;
	return event;
}

static __always_inline int send_slab_event(u32 kind, u64 cgroup_id, u64 cache, s32 kmemcg_id)
{
	struct slab_event *event = new_slab_event(kind, cgroup_id, cache, kmemcg_id);

	if (event)
		events.ringbuf_submit(event, 0);
	return 0;
}
