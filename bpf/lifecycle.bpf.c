/* SPDX-License-Identifier: GPL-2.0-only */
/* Signal lifecycle: one event each when a memcg goes online, goes offline, and is released. */

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
static __always_inline int send_css_online(u64 css)
{
	return send_online(CSS_CGROUP(css), CSS_PARENT(css));
}

static __always_inline int send_css_end(u32 kind, u64 css)
{
	return send_end(kind, CSS_CGROUP(css), CSS_PARENT(css));
}

#ifdef USE_fentry_mem_cgroup_css_online
int fentry_mem_cgroup_css_online(unsigned long long *ctx)
{
	return send_css_online(ctx[0]);
}
#endif

#ifdef USE_kprobe_mem_cgroup_css_online
int kprobe_mem_cgroup_css_online(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_mem_cgroup_css_online);
	return send_css_online(PT_REGS_PARM1(ctx));
}
#endif

#ifdef USE_fentry_mem_cgroup_css_offline
int fentry_mem_cgroup_css_offline(unsigned long long *ctx)
{
	return send_css_end(EVENT_OFFLINE, ctx[0]);
}
#endif

#ifdef USE_kprobe_mem_cgroup_css_offline
int kprobe_mem_cgroup_css_offline(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_mem_cgroup_css_offline);
	return send_css_end(EVENT_OFFLINE, PT_REGS_PARM1(ctx));
}
#endif

#ifdef USE_fentry_mem_cgroup_css_released
int fentry_mem_cgroup_css_released(unsigned long long *ctx)
{
	return send_css_end(EVENT_RELEASED, ctx[0]);
}
#endif

#ifdef USE_kprobe_mem_cgroup_css_released
int kprobe_mem_cgroup_css_released(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_mem_cgroup_css_released);
	return send_css_end(EVENT_RELEASED, PT_REGS_PARM1(ctx));
}
#endif

/*
 * cgroup:cgroup_mkdir, _rmdir, _release report cgroups of every hierarchy; the memory controller's has MEMORY_HIERARCHY_ID.
 * On v2, a cgroup without the controller has no css when it ends; user space ignores ids that never went online.
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

#ifdef USE_raw_tp_cgroup_mkdir
int raw_tp_cgroup_mkdir(struct bpf_raw_tracepoint_args *ctx)
{
	u64 cgroup = ctx->args[0];

	if (in_memory_hierarchy(cgroup) && cgroup_has_memory(cgroup))
		send_online(cgroup, CGROUP_PARENT(cgroup));
	return 0;
}
#endif

static __always_inline int send_cgroup_end(u32 kind, u64 cgroup)
{
	return in_memory_hierarchy(cgroup) ? send_end(kind, cgroup, CGROUP_PARENT(cgroup)) : 0;
}

#ifdef USE_raw_tp_cgroup_rmdir
int raw_tp_cgroup_rmdir(struct bpf_raw_tracepoint_args *ctx)
{
	return send_cgroup_end(EVENT_OFFLINE, ctx->args[0]);
}
#endif

#ifdef USE_raw_tp_cgroup_release
int raw_tp_cgroup_release(struct bpf_raw_tracepoint_args *ctx)
{
	return send_cgroup_end(EVENT_RELEASED, ctx->args[0]);
}
#endif
