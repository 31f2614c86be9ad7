/* SPDX-License-Identifier: GPL-2.0-only */
/* Signals caches and ids: one event when a cache is created or destroyed, when a kmemcg_id is given or freed. */

/* memcg_create_kmem_cache(memcg, root cache) at return: the child, or NULL. At the return of a kretprobe the arguments
 * are gone: memcg is 0 there, and nobody's id is 0. */
#define BODY_child_created(memcg, root, a2, a3, child)                                                                 \
	((child) ? send_slab_event(EVENT_CACHE_CREATED, css_cgroup_id(memcg), child, CACHE_ID(child)) : 0)
/* slab_kmem_cache_release(cache): the last that is done with it. */
#define BODY_cache_released(cache, a1, a2, a3, a4) send_slab_event(EVENT_CACHE_DESTROYED, 0, cache, CACHE_ID(cache))
/* memcg_alloc_cache_id(memcg) at return: the id, or an error. */
#define BODY_id_given(memcg, a1, a2, a3, id)                                                                           \
	((s32)(id) >= 0 ? send_slab_event(EVENT_ID_GIVEN, css_cgroup_id(memcg), 0, id) : 0)
/* memcg_free_cache_id(id) */
#define BODY_id_freed(id, a1, a2, a3, a4) send_slab_event(EVENT_ID_FREED, 0, 0, id)
