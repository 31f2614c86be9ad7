/* SPDX-License-Identifier: GPL-2.0-only */
/* Signals caches and ids: one event when a cache is created or destroyed, when a kmemcg_id is given or freed. */

/* memcg_create_kmem_cache(memcg, root cache) at return: the child, or NULL. A kretprobe no longer has the arguments: it
 * passes memcg 0, and the event then has cgroup id 0. */
static __always_inline int send_child_created(u64 memcg, u64 child)
{
	return child ? send_slab_event(EVENT_CACHE_CREATED, css_cgroup_id(memcg), child, CACHE_ID(child)) : 0;
}

#ifdef USE_fexit_memcg_create_kmem_cache
int fexit_memcg_create_kmem_cache(unsigned long long *ctx)
{
	return send_child_created(ctx[0], ctx[RETURN_AT_memcg_create_kmem_cache]);
}
#endif

#ifdef USE_kretprobe_memcg_create_kmem_cache
int kretprobe_memcg_create_kmem_cache(struct pt_regs *ctx)
{
	count_run(RUN_kretprobe_memcg_create_kmem_cache);
	return send_child_created(0, PT_REGS_RC(ctx));
}
#endif

/* slab_kmem_cache_release(cache): the last function that uses a cache. */
static __always_inline int send_cache_released(u64 cache)
{
	return send_slab_event(EVENT_CACHE_DESTROYED, 0, cache, CACHE_ID(cache));
}

#ifdef USE_fentry_slab_kmem_cache_release
int fentry_slab_kmem_cache_release(unsigned long long *ctx)
{
	return send_cache_released(ctx[0]);
}
#endif

#ifdef USE_kprobe_slab_kmem_cache_release
int kprobe_slab_kmem_cache_release(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_slab_kmem_cache_release);
	return send_cache_released(PT_REGS_PARM1(ctx));
}
#endif

/* memcg_alloc_cache_id(memcg) at return: the id, or an error. */
static __always_inline int send_id_given(u64 memcg, u64 id)
{
	return (s32)id >= 0 ? send_slab_event(EVENT_ID_GIVEN, css_cgroup_id(memcg), 0, id) : 0;
}

#ifdef USE_fexit_memcg_alloc_cache_id
int fexit_memcg_alloc_cache_id(unsigned long long *ctx)
{
	return send_id_given(ctx[0], ctx[RETURN_AT_memcg_alloc_cache_id]);
}
#endif

#ifdef USE_kretprobe_memcg_alloc_cache_id
int kretprobe_memcg_alloc_cache_id(struct pt_regs *ctx)
{
	count_run(RUN_kretprobe_memcg_alloc_cache_id);
	return send_id_given(0, PT_REGS_RC(ctx));
}
#endif

/* memcg_free_cache_id(id) */
#ifdef USE_fentry_memcg_free_cache_id
int fentry_memcg_free_cache_id(unsigned long long *ctx)
{
	return send_slab_event(EVENT_ID_FREED, 0, 0, ctx[0]);
}
#endif

#ifdef USE_kprobe_memcg_free_cache_id
int kprobe_memcg_free_cache_id(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_memcg_free_cache_id);
	return send_slab_event(EVENT_ID_FREED, 0, 0, PT_REGS_PARM1(ctx));
}
#endif
