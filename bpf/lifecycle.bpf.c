/* SPDX-License-Identifier: GPL-2.0-only */
/* Signal lifecycle: one event when a memcg goes online, goes offline, is released. Rare, so streamed. */

static __always_inline int send_online(u64 cgroup, u64 parent_css)
{
	u64 kn = KMW_READ(u64, cgroup, cgroup__kn);
	u64 name = KMW_READ(u64, kn, kernfs_node__name);
	struct online_event *online = events.ringbuf_reserve(sizeof(*online));

	if (!online) {
		count_lost(LOST_RINGBUF_FULL, 1);
		return 0;
	}
	fill_event(&online->event, EVENT_ONLINE, KMW_READ(u64, kn, kernfs_node__id), parent_css);
	if (bpf_probe_read_kernel_str(online->name, sizeof(online->name), (void *)name) < 0)
		online->name[0] = 0;
	events.ringbuf_submit(online, 0);
	return 0;
}

static __always_inline int send_end(u32 kind, u64 cgroup, u64 parent_css)
{
	u64 kn = KMW_READ(u64, cgroup, cgroup__kn);
	struct lifecycle_event *event = events.ringbuf_reserve(sizeof(*event));

	if (!event) {
		count_lost(LOST_RINGBUF_FULL, 1);
		return 0;
	}
	fill_event(event, kind, KMW_READ(u64, kn, kernfs_node__id), parent_css);
	events.ringbuf_submit(event, 0);
	return 0;
}

#define CSS_CGROUP(css) KMW_READ(u64, css, cgroup_subsys_state__cgroup)
#define CSS_PARENT(css) KMW_READ(u64, css, cgroup_subsys_state__parent)

/* mem_cgroup_css_online(css), _offline, _released */
#define BODY_css_online(css, a1, a2, a3, a4) send_online(CSS_CGROUP(css), CSS_PARENT(css))
#define BODY_css_offline(css, a1, a2, a3, a4) send_end(EVENT_OFFLINE, CSS_CGROUP(css), CSS_PARENT(css))
#define BODY_css_released(css, a1, a2, a3, a4) send_end(EVENT_RELEASED, CSS_CGROUP(css), CSS_PARENT(css))

/*
 * cgroup:cgroup_mkdir, _rmdir, _release tell of every hierarchy; the memory controller's has MEMORY_HIERARCHY_ID. On
 * v2, cgroups that do not have the controller enabled end with no css; user space ignores ids that never went online.
 */
static __always_inline int in_memory_hierarchy(u64 cgroup)
{
	return KMW_READ(int, KMW_READ(u64, cgroup, cgroup__root), cgroup_root__hierarchy_id) == MEMORY_HIERARCHY_ID;
}

#define CGROUP_PARENT(cgroup) KMW_READ(u64, (cgroup) + OFF_cgroup__self, cgroup_subsys_state__parent)

static __always_inline int cgroup_has_memory(u64 cgroup)
{
	u64 css = 0;

	bpf_probe_read_kernel(&css, sizeof(css), (void *)(cgroup + OFF_cgroup__subsys + 8 * MEMORY_CGRP_ID));
	return css != 0;
}

#define BODY_cgroup_mkdir(cgroup, path, a2, a3, a4)                                                                    \
	(in_memory_hierarchy(cgroup) && cgroup_has_memory(cgroup) ? send_online(cgroup, CGROUP_PARENT(cgroup)) : 0)
#define BODY_cgroup_rmdir(cgroup, path, a2, a3, a4)                                                                    \
	(in_memory_hierarchy(cgroup) ? send_end(EVENT_OFFLINE, cgroup, CGROUP_PARENT(cgroup)) : 0)
#define BODY_cgroup_release(cgroup, path, a2, a3, a4)                                                                  \
	(in_memory_hierarchy(cgroup) ? send_end(EVENT_RELEASED, cgroup, CGROUP_PARENT(cgroup)) : 0)
