/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Signal latency, only with --latency: the time that one in LATENCY_ONE_IN allocations and recharge checks takes.
 *
 * Each CPU counts the calls of each function, and times one of them: its entry program records the stack address and the
 * time. A return belongs to that call when it has the same stack address on the same CPU; an interrupt, another task and a
 * nested call have other stack addresses. When the next call to be timed begins before that return, because the task has
 * moved to another CPU or an interrupt was timed instead, the earlier call is dropped, and counted as dropped.
 *
 * The kernel never starts a program that already runs on the same CPU, so members that only the entry program writes need
 * no atomic operation.
 */

/* Index in `timed_calls.of`: the functions that allocate, then the recharge check. */
enum timed_function { TIMED_KMEM_CACHE_ALLOC, TIMED_KMEM_CACHE_ALLOC_LRU, TIMED_KMEM_CACHE_ALLOC_NODE, TIMED_CHECK, TIMED };

#define LATENCY_ONE_IN 64 /* calls of which one is timed; a power of 2 */
#define TIMED_DEPTH 8192  /* bytes of stack between an allocation and its check, at most; other stacks are further away */
#define TIMED_SHIFT 16    /* bytes that the stack address of a kretprobe may differ from that of the entry */
#define LATENCY_BUCKETS 40

struct timed_call {
	u64 calls;
	u64 dropped;      /* calls whose return did not come in time */
	u64 place;        /* stack address of the call that is being timed; 0: none is */
	u64 start_ns;     /* CLOCK_MONOTONIC */
	u64 checked;      /* 1: a recharge check began inside the call that is being timed */
	u64 entry_place;  /* scratch memory: see `place_of` */
	u64 return_place;
};

struct timed_calls {
	struct timed_call of[TIMED];
};

BPF_PERCPU_ARRAY(timed, struct timed_calls, 1);

enum latency_kind { LATENCY_ALLOCATION_WITHOUT_CHECK, LATENCY_ALLOCATION_WITH_CHECK, LATENCY_RECHARGE_CHECK, LATENCY_KINDS };

struct latency_value {
	u64 samples;
	u64 sum_ns;
	u64 buckets[LATENCY_BUCKETS]; /* samples; bucket n: from 2^n ns up to 2^(n+1) ns; the first has 0, the last all above */
};

BPF_PERCPU_ARRAY(latency, struct latency_value, LATENCY_KINDS); /* index: enum latency_kind */

/* To the verifier the context is a pointer, which cannot be compared. Storing and loading it makes it a number. */
static __always_inline u64 place_of(u64 context, u64 *memory)
{
	*(volatile u64 *)memory = context;
	return *(volatile u64 *)memory;
}

static __always_inline int is_near(u64 timed_place, u64 place)
{
	return timed_place && timed_place - place + TIMED_SHIFT <= 2 * TIMED_SHIFT;
}

static __always_inline int timed_entry(int which, u64 context)
{
	int zero = 0, other;
	struct timed_calls *all = timed.lookup(&zero);
	struct timed_call *call;
	u64 place;

	if (!all)
		return 0;
	call = &all->of[which];
	place = place_of(context, &call->entry_place);
	if (which == TIMED_CHECK) {
#pragma unroll
		for (other = 0; other < TIMED_CHECK; other++) {
			/* The stack grows downwards. */
			if (all->of[other].place && all->of[other].place - place < TIMED_DEPTH)
				all->of[other].checked = 1;
		}
	}
	call->calls++;
	if (is_near(call->place, place)) {
		/* The return of the earlier call was missed, or came on another CPU. */
		call->place = 0;
		call->dropped++;
	}
	if (call->calls & (LATENCY_ONE_IN - 1))
		return 0;
	if (call->place)
		call->dropped++;
	call->checked = 0;
	*(volatile u64 *)&call->place = 0;
	*(volatile u64 *)&call->start_ns = bpf_ktime_get_ns();
	*(volatile u64 *)&call->place = place; /* last: from here on a return may use all three */
	return 0;
}

static __always_inline void count_latency(int kind, u64 took_ns)
{
	struct latency_value *value = latency.lookup(&kind);
	u64 bucket = bpf_log2l(took_ns) - 1;

	if (!value)
		return;
	if (bucket >= LATENCY_BUCKETS)
		bucket = LATENCY_BUCKETS - 1;
	__sync_fetch_and_add(&value->samples, 1);
	__sync_fetch_and_add(&value->sum_ns, took_ns);
	__sync_fetch_and_add(&value->buckets[bucket], 1);
}

static __always_inline int timed_return(int which, u64 context)
{
	int zero = 0, kind;
	struct timed_calls *all = timed.lookup(&zero);
	struct timed_call *call;
	u64 place, start_ns;

	if (!all)
		return 0;
	call = &all->of[which];
	if (!call->place)
		return 0;
	place = place_of(context, &call->return_place);
	/* In this order: an interrupt whose call is timed in between has another place. */
	start_ns = *(volatile u64 *)&call->start_ns;
	if (!is_near(*(volatile u64 *)&call->place, place))
		return 0;
	kind = which == TIMED_CHECK ? LATENCY_RECHARGE_CHECK : call->checked ? LATENCY_ALLOCATION_WITH_CHECK : LATENCY_ALLOCATION_WITHOUT_CHECK;
	*(volatile u64 *)&call->place = 0;
	count_latency(kind, bpf_ktime_get_ns() - start_ns);
	return 0;
}

/* fentry and fexit of one call have the same context address; the context of a kprobe has the stack pointer. */
#ifdef USE_fentry_timed_kmem_cache_alloc
int fentry_timed_kmem_cache_alloc(unsigned long long *ctx)
{
	return timed_entry(TIMED_KMEM_CACHE_ALLOC, (u64)ctx);
}
#endif

#ifdef USE_fexit_timed_kmem_cache_alloc
int fexit_timed_kmem_cache_alloc(unsigned long long *ctx)
{
	return timed_return(TIMED_KMEM_CACHE_ALLOC, (u64)ctx);
}
#endif

#ifdef USE_kprobe_timed_kmem_cache_alloc
int kprobe_timed_kmem_cache_alloc(struct pt_regs *ctx)
{
	return timed_entry(TIMED_KMEM_CACHE_ALLOC, PT_REGS_SP(ctx));
}
#endif

#ifdef USE_kretprobe_timed_kmem_cache_alloc
int kretprobe_timed_kmem_cache_alloc(struct pt_regs *ctx)
{
	return timed_return(TIMED_KMEM_CACHE_ALLOC, PT_REGS_SP(ctx));
}
#endif

#ifdef USE_fentry_timed_kmem_cache_alloc_lru
int fentry_timed_kmem_cache_alloc_lru(unsigned long long *ctx)
{
	return timed_entry(TIMED_KMEM_CACHE_ALLOC_LRU, (u64)ctx);
}
#endif

#ifdef USE_fexit_timed_kmem_cache_alloc_lru
int fexit_timed_kmem_cache_alloc_lru(unsigned long long *ctx)
{
	return timed_return(TIMED_KMEM_CACHE_ALLOC_LRU, (u64)ctx);
}
#endif

#ifdef USE_kprobe_timed_kmem_cache_alloc_lru
int kprobe_timed_kmem_cache_alloc_lru(struct pt_regs *ctx)
{
	return timed_entry(TIMED_KMEM_CACHE_ALLOC_LRU, PT_REGS_SP(ctx));
}
#endif

#ifdef USE_kretprobe_timed_kmem_cache_alloc_lru
int kretprobe_timed_kmem_cache_alloc_lru(struct pt_regs *ctx)
{
	return timed_return(TIMED_KMEM_CACHE_ALLOC_LRU, PT_REGS_SP(ctx));
}
#endif

#ifdef USE_fentry_timed_kmem_cache_alloc_node
int fentry_timed_kmem_cache_alloc_node(unsigned long long *ctx)
{
	return timed_entry(TIMED_KMEM_CACHE_ALLOC_NODE, (u64)ctx);
}
#endif

#ifdef USE_fexit_timed_kmem_cache_alloc_node
int fexit_timed_kmem_cache_alloc_node(unsigned long long *ctx)
{
	return timed_return(TIMED_KMEM_CACHE_ALLOC_NODE, (u64)ctx);
}
#endif

#ifdef USE_kprobe_timed_kmem_cache_alloc_node
int kprobe_timed_kmem_cache_alloc_node(struct pt_regs *ctx)
{
	return timed_entry(TIMED_KMEM_CACHE_ALLOC_NODE, PT_REGS_SP(ctx));
}
#endif

#ifdef USE_kretprobe_timed_kmem_cache_alloc_node
int kretprobe_timed_kmem_cache_alloc_node(struct pt_regs *ctx)
{
	return timed_return(TIMED_KMEM_CACHE_ALLOC_NODE, PT_REGS_SP(ctx));
}
#endif

#ifdef USE_fentry_timed___memcg_kmem_recharge_slab
int fentry_timed___memcg_kmem_recharge_slab(unsigned long long *ctx)
{
	return timed_entry(TIMED_CHECK, (u64)ctx);
}
#endif

#ifdef USE_fexit_timed___memcg_kmem_recharge_slab
int fexit_timed___memcg_kmem_recharge_slab(unsigned long long *ctx)
{
	return timed_return(TIMED_CHECK, (u64)ctx);
}
#endif

#ifdef USE_kprobe_timed___memcg_kmem_recharge_slab
int kprobe_timed___memcg_kmem_recharge_slab(struct pt_regs *ctx)
{
	return timed_entry(TIMED_CHECK, PT_REGS_SP(ctx));
}
#endif

#ifdef USE_kretprobe_timed___memcg_kmem_recharge_slab
int kretprobe_timed___memcg_kmem_recharge_slab(struct pt_regs *ctx)
{
	return timed_return(TIMED_CHECK, PT_REGS_SP(ctx));
}
#endif
