/* SPDX-License-Identifier: GPL-2.0-only */
/* Signal charge: pages of kernel memory charged to and uncharged from each memcg, without its children. */

struct charge_value {
	u64 charged_pages;
	u64 uncharged_pages;
};

/* Memcgs whose charges are counted at once. User space removes released ones. No more than 65,535 can be online. */
#define MAX_CGROUPS 65536

BPF_PERCPU_HASH(charges, u64, struct charge_value, MAX_CGROUPS);

static __always_inline int count_charge(u64 memcg, s64 pages)
{
	u64 cgroup_id = css_cgroup_id(memcg); /* the css is the first member of struct mem_cgroup */
	struct charge_value zero = {}, *value;
	u64 uncharged = -pages;

	if (!cgroup_id) {
		count_lost(LOST_CGROUP_UNREADABLE, 1);
		return 0;
	}
	value = charges.lookup_or_try_init(&cgroup_id, &zero);
	if (!value) {
		count_lost(LOST_CHARGE_MAP_FULL, 1);
		return 0;
	}
	if (pages > 0) {
		__sync_fetch_and_add(&value->charged_pages, pages);
	} else {
		/* Without this the compiler subtracts, with an instruction that kernels before v5.12 do not have. */
		asm volatile("" : "+r"(uncharged));
		__sync_fetch_and_add(&value->uncharged_pages, uncharged);
	}
	return 0;
}

/* memcg:mod_memcg_state, __mod_memcg_state(): memcg, item, change. MEMCG_KMEM counts pages. */
#ifdef MEMCG_KMEM
static __always_inline int count_change(u64 memcg, u64 item, u64 change)
{
	return (int)item == MEMCG_KMEM ? count_charge(memcg, (s32)change) : 0;
}
#endif

#ifdef USE_raw_tp_mod_memcg_state
int raw_tp_mod_memcg_state(struct bpf_raw_tracepoint_args *ctx)
{
	return count_change(ctx->args[0], ctx->args[1], ctx->args[2]);
}
#endif

#ifdef USE_fentry___mod_memcg_state
int fentry___mod_memcg_state(unsigned long long *ctx)
{
	return count_change(ctx[0], ctx[1], ctx[2]);
}
#endif

#ifdef USE_kprobe___mod_memcg_state
int kprobe___mod_memcg_state(struct pt_regs *ctx)
{
	count_run(RUN_kprobe___mod_memcg_state);
	return count_change(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
}
#endif

/* __memcg_kmem_charge(memcg, gfp, pages) at return: 0, or the error with which the charge was refused. */
#ifdef USE_fexit___memcg_kmem_charge
int fexit___memcg_kmem_charge(unsigned long long *ctx)
{
	return (int)ctx[RETURN_AT___memcg_kmem_charge] ? 0 : count_charge(ctx[0], (u32)ctx[2]);
}
#endif

/* At entry, where it is not known whether the charge will be refused. */
#ifdef USE_kprobe___memcg_kmem_charge
int kprobe___memcg_kmem_charge(struct pt_regs *ctx)
{
	count_run(RUN_kprobe___memcg_kmem_charge);
	return count_charge(PT_REGS_PARM1(ctx), (u32)PT_REGS_PARM3(ctx));
}
#endif

/* __memcg_kmem_uncharge(memcg, pages) */
#ifdef USE_fentry___memcg_kmem_uncharge
int fentry___memcg_kmem_uncharge(unsigned long long *ctx)
{
	return count_charge(ctx[0], -(s64)(u32)ctx[1]);
}
#endif

#ifdef USE_kprobe___memcg_kmem_uncharge
int kprobe___memcg_kmem_uncharge(struct pt_regs *ctx)
{
	count_run(RUN_kprobe___memcg_kmem_uncharge);
	return count_charge(PT_REGS_PARM1(ctx), -(s64)(u32)PT_REGS_PARM2(ctx));
}
#endif
