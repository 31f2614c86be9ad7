/* SPDX-License-Identifier: GPL-2.0-only */
/* Signal charge: pages of kernel memory charged to and uncharged from each memcg itself, its children not included. */

struct charge_value {
	u64 charged_pages;
	u64 uncharged_pages;
};

BPF_PERCPU_HASH(charges, u64, struct charge_value, MAX_CGROUPS);

static __always_inline int count_charge(u64 memcg, s64 pages)
{
	u64 cgroup_id = css_cgroup_id(memcg); /* the css is the first member of struct mem_cgroup */
	struct charge_value zero = {}, *value;
	u64 uncharged = -pages;

	if (!cgroup_id) {
		count_lost(LOST_NO_CGROUP, 1);
		return 0;
	}
	value = charges.lookup_or_try_init(&cgroup_id, &zero);
	if (!value) {
		count_lost(LOST_CHARGES_FULL, 1);
		return 0;
	}
	if (pages > 0) {
		__sync_fetch_and_add(&value->charged_pages, pages);
	} else {
		/* Else the compiler subtracts, with an instruction that kernels before v5.12 do not have. */
		asm volatile("" : "+r"(uncharged));
		__sync_fetch_and_add(&value->uncharged_pages, uncharged);
	}
	return 0;
}

/* memcg:mod_memcg_state, __mod_memcg_state(): memcg, item, change. MEMCG_KMEM counts pages. */
#define BODY_memcg_state(memcg, item, change, a3, a4) ((int)(item) == MEMCG_KMEM ? count_charge(memcg, (s32)(change)) : 0)
/* __memcg_kmem_charge(memcg, gfp, pages) at return: 0, or it was refused. */
#define BODY_kmem_charge(memcg, gfp, pages, a3, error) ((int)(error) ? 0 : count_charge(memcg, (u32)(pages)))
/* __memcg_kmem_uncharge(memcg, pages) */
#define BODY_kmem_uncharge(memcg, pages, a2, a3, a4) count_charge(memcg, -(s64)(u32)(pages))
