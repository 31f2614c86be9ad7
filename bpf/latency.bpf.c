/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Signal latency, only with --latency: how long an allocation takes, and a recharge check, in one of LATENCY_ONE_IN calls.
 *
 * Each CPU counts the calls of each function, and notes one that is to be timed: where on the stack it was entered, and
 * when. A return is that of the noted call when it is at the same place of the stack, on the same CPU. So neither an
 * interrupt, nor another task, nor a call inside the call can be taken for it. A noted call whose return does not come
 * before the next one is noted, because it moved to another CPU or because an interrupt was timed instead, is dropped, and
 * counted as such.
 *
 * The programs of one function do not run inside themselves, so what only the entry writes needs no atomic operation.
 */

/* Index in `timed_calls.of`: the functions that allocate, then the check. */
enum timed_function { TIMED_KMEM_CACHE_ALLOC, TIMED_KMEM_CACHE_ALLOC_LRU, TIMED_KMEM_CACHE_ALLOC_NODE, TIMED_CHECK, TIMED };

#define LATENCY_ONE_IN 64 /* calls of which one is timed; a power of 2 */
#define TIMED_DEPTH 8192 /* bytes of stack between an allocation and its check: less, and no other stack is as near */
#define TIMED_SHIFT 16   /* bytes that a kprobe at the return may find the stack elsewhere */
#define LATENCY_BUCKETS 40

struct timed_call {
	u64 calls;
	u64 dropped;      /* calls that were noted and not timed */
	u64 place;        /* address on the stack of the noted call; 0: none is noted */
	u64 start_ns;     /* CLOCK_MONOTONIC */
	u64 checked;      /* 1: a recharge check began inside the noted call */
	u64 entry_place;  /* for a moment: see `place_of` */
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

/* The verifier takes the context for a pointer, which cannot be compared, until it has been in memory. */
static __always_inline u64 place_of(u64 context, u64 *memory)
{
	*(volatile u64 *)memory = context;
	return *(volatile u64 *)memory;
}

static __always_inline int is_near(u64 noted, u64 place)
{
	return noted && noted - place + TIMED_SHIFT <= 2 * TIMED_SHIFT;
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
		/* The return of that one was missed, or came on another CPU. */
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
	*(volatile u64 *)&call->place = place; /* last: from here on a return may find it */
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
	/* In this order: an interrupt that is noted in between has another place. */
	start_ns = *(volatile u64 *)&call->start_ns;
	if (!is_near(*(volatile u64 *)&call->place, place))
		return 0;
	kind = which == TIMED_CHECK ? LATENCY_RECHARGE_CHECK : call->checked ? LATENCY_ALLOCATION_WITH_CHECK : LATENCY_ALLOCATION_WITHOUT_CHECK;
	*(volatile u64 *)&call->place = 0;
	count_latency(kind, bpf_ktime_get_ns() - start_ns);
	return 0;
}

/* The context of fentry and fexit is one place on the stack for both; that of a kprobe has the stack pointer. */
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
