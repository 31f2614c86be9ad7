/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Signal pins: programs that no event runs. User space runs them with BPF_PROG_TEST_RUN, and they answer through maps. They
 * also find memcgs that were removed before kmemwatch started: a removed css stays on the list of its parent's children
 * until the kernel releases it.
 */

#define PEEK_BYTES 4096

struct peek_buffer {
	u8 bytes[PEEK_BYTES];
};

BPF_F_TABLE("array", int, struct peek_buffer, peek_out, 1, BPF_F_MMAPABLE);

/* Copies args[1] bytes (at most PEEK_BYTES) of kernel memory at args[0] to peek_out. Returns 0, or the error of the read.
 * For address 0 it gives the address of the task that asks. */
int test_run_peek(struct bpf_raw_tracepoint_args *ctx)
{
	int zero = 0;
	struct peek_buffer *out = peek_out.lookup(&zero);
	u64 bytes = ctx->args[1], task;

	if (!out)
		return -1;
	if (!ctx->args[0]) {
		task = bpf_get_current_task();
		return bpf_probe_read_kernel(out, sizeof(task), &task);
	}
	if (bytes > PEEK_BYTES)
		bytes = PEEK_BYTES;
	return bpf_probe_read_kernel(out, bytes, (void *)ctx->args[0]);
}

/* The same for many addresses at once: a run costs far more than a read. */
#define PEEK_PARTS 64 /* addresses per run */
#define PEEK_PART_BYTES 512

struct peek_address {
	u64 address; /* in; out: 0 if it could not be read */
};

struct peek_part {
	u8 bytes[PEEK_PART_BYTES];
};

BPF_F_TABLE("array", int, struct peek_address, peek_in, PEEK_PARTS, BPF_F_MMAPABLE);
BPF_F_TABLE("array", int, struct peek_part, peek_parts, PEEK_PARTS, BPF_F_MMAPABLE);

/* Copies args[1] bytes (at most PEEK_PART_BYTES) from each of the first args[0] addresses of peek_in to peek_parts. */
int test_run_peek_many(struct bpf_raw_tracepoint_args *ctx)
{
	u64 number = ctx->args[0], bytes = ctx->args[1];
	struct peek_address *in;
	struct peek_part *out;
	int i;

	for (i = 0; i < PEEK_PARTS; i++) {
		u64 size = bytes;
		int index = i;

		if (i >= number)
			return 0;
		in = peek_in.lookup(&index);
		out = peek_parts.lookup(&index);
		/* In each turn: the verifier of v6.1 loses the bounds of a number that was on the stack. */
		asm volatile("" : "+r"(size));
		if (size > PEEK_PART_BYTES)
			size = PEEK_PART_BYTES;
		if (!in || !out)
			return -1;
		if (bpf_probe_read_kernel(out, size, (void *)in->address))
			in->address = 0;
	}
	return 0;
}

#define WALK_BATCH 32 /* records per run */
#define WALK_STEPS 96 /* edges per run; a leaf takes three */
#define STATS_MAX 64  /* statistics of a memcg */

/* One memcg of the tree of css. A member that this kernel lacks stays 0. */
struct memcg_record {
	u64 css;           /* address; the css is the first member of struct mem_cgroup */
	u64 parent_css;    /* address; 0 for the root */
	u64 serial_nr;     /* unique for ever, ascending among siblings */
	u64 cgroup_id;     /* kernfs id */
	u64 references;    /* css.refcnt, only exact once the memcg is dying */
	u64 memory_pages;  /* this and the next three: page_counter.usage, children included */
	u64 swap_pages;    /* v2 only: v1 has memory and swap in one counter */
	u64 kmem_pages;
	u64 tcpmem_pages;
	u32 online;        /* 1: the cgroup still has this css; 0: the css went offline */
	s32 kmemcg_id;
	s32 kmem_cache_id;      /* the kmemcg_id that it got when it went online; -1 where the kernel does not keep that */
	u32 kmem_cache_id_held; /* 1: it still has that id */
	s32 memcg_id;           /* mem_cgroup.id.id */
	u32 unused;
	u64 stats[STATS_MAX]; /* memcg_vmstats.state, children included; units as memory.stat counts inside the kernel */
	char name[256];    /* kernfs_node.name: last component of the path, NAME_MAX and a NUL */
};

enum walk_end {
	WALK_DONE = 1, /* the whole tree */
	WALK_LOST,     /* the css that the walk stood on has left the tree: user space starts again */
};

struct walk_state {
	u64 root;          /* out: where the walk began */
	u64 css;           /* in, out: where the walk goes on; 0: at the root */
	u64 serial_nr;     /* in, out: of `css`; another number means that `css` was freed meanwhile */
	u64 visited;       /* 1: `css` itself has been reported; 2: its children, too */
	u64 count;         /* out: records filled */
	u64 done;          /* out: enum walk_end; 0: the walk goes on */
};

BPF_F_TABLE("array", int, struct memcg_record, walk_out, WALK_BATCH, BPF_F_MMAPABLE);
BPF_F_TABLE("array", int, struct walk_state, walk, 1, BPF_F_MMAPABLE);

static __always_inline void record_memcg(u64 css, struct memcg_record *out)
{
	u64 cgroup = KMW_READ(u64, css, cgroup_subsys_state__cgroup);
	u64 kn = KMW_READ(u64, cgroup, cgroup__kn);
	u64 name = KMW_READ(u64, kn, kernfs_node__name);
	u64 stats, css_now = 0;

	out->css = css;
	out->parent_css = KMW_READ(u64, css, cgroup_subsys_state__parent);
	out->serial_nr = KMW_READ(u64, css, cgroup_subsys_state__serial_nr);
	out->cgroup_id = KMW_READ(u64, kn, kernfs_node__id);
	/* offline_css() removes the css from the cgroup after the controller's css_offline(). */
	bpf_probe_read_kernel(&css_now, sizeof(css_now), (void *)(cgroup + OFF_cgroup__subsys + 8 * MEMORY_CGRP_ID));
	out->online = css_now == css;
	out->kmemcg_id = KMW_READ(s32, css, mem_cgroup__kmemcg_id);
	out->kmem_cache_id = -1;
	out->kmem_cache_id_held = 0;
	out->memcg_id = 0;
#ifdef OFF_mem_cgroup__kmem_cache_id
	out->kmem_cache_id = KMW_READ(s32, css, mem_cgroup__kmem_cache_id);
	out->kmem_cache_id_held = KMW_READ(u8, css, mem_cgroup__kmem_cache_id_held);
#endif
#ifdef OFF_mem_cgroup__id
	out->memcg_id = KMW_READ(s32, css, mem_cgroup__id);
#endif
	out->references = 0;
#ifdef OFF_percpu_ref_data__count
	/* Linux kernel commit 2b0d3d3e4fcf ("percpu_ref: reduce memory footprint of percpu_ref in fast path") (v5.10). */
	out->references = KMW_READ(u64, KMW_READ(u64, css, cgroup_subsys_state__refcnt__data), percpu_ref_data__count);
#endif
	out->memory_pages = KMW_READ(u64, css, mem_cgroup__memory__usage);
	out->swap_pages = KMW_READ(u64, css, mem_cgroup__swap__usage);
	out->kmem_pages = 0;
	out->tcpmem_pages = 0;
#ifdef OFF_mem_cgroup__kmem__usage
	out->kmem_pages = KMW_READ(u64, css, mem_cgroup__kmem__usage);
#endif
#ifdef OFF_mem_cgroup__tcpmem__usage
	out->tcpmem_pages = KMW_READ(u64, css, mem_cgroup__tcpmem__usage);
#endif
	stats = css + OFF_mem_cgroup__vmstats;
#ifdef VMSTATS_POINTER
	/* Linux kernel commit 410f8e82689e ("memcg: extract memcg_vmstats from struct mem_cgroup") (in v6.1). */
	stats = KMW_READ(u64, css, mem_cgroup__vmstats) + OFF_memcg_vmstats__state;
#endif
	bpf_probe_read_kernel(out->stats, STATS_COUNT * sizeof(u64), (void *)stats);
	bpf_probe_read_kernel_str(out->name, sizeof(out->name), (void *)name);
}

/* Follows one edge of the tree, depth first, parents before children. The state is in the map, so that the verifier, which
 * follows every path through the loop, sees one state per turn. Returns 1 when the run is over. */
static __always_inline int walk_step(struct walk_state *at)
{
	u64 css = at->css, next, parent;
	int index = at->count;
	struct memcg_record *out;

	if (!at->visited) {
		out = walk_out.lookup(&index);
		if (!out)
			return 1; /* the batch is full */
		record_memcg(css, out);
		at->count = index + 1;
		at->visited = 1;
		return 0;
	}
	if (at->visited == 1) {
		next = KMW_READ(u64, css, cgroup_subsys_state__children);
		if (next && next != css + OFF_cgroup_subsys_state__children) {
			at->css = next - OFF_cgroup_subsys_state__sibling;
			at->visited = 0;
			return 0;
		}
	}
	parent = KMW_READ(u64, css, cgroup_subsys_state__parent);
	next = KMW_READ(u64, css, cgroup_subsys_state__sibling);
	if (!parent || !next) {
		/* Only the root has no parent: anywhere else this is memory that is no css any more. */
		at->done = css == at->root ? WALK_DONE : WALK_LOST;
		return 1;
	}
	if (next != parent + OFF_cgroup_subsys_state__children) {
		at->css = next - OFF_cgroup_subsys_state__sibling;
		at->visited = 0;
	} else {
		at->css = parent;
		at->visited = 2; /* reported, and so are its children */
	}
	return 0;
}

/* Whether `css` is still the same, and in the list of its parent's children: the next one of a css that was removed from
 * the list may be freed already. */
static __always_inline int still_there(struct walk_state *at)
{
	u64 sibling = at->css + OFF_cgroup_subsys_state__sibling;
	u64 previous = 0, back = 0;

	if (at->serial_nr != KMW_READ(u64, at->css, cgroup_subsys_state__serial_nr))
		return 0;
	bpf_probe_read_kernel(&previous, sizeof(previous), (void *)(sibling + 8)); /* list_head.prev */
	bpf_probe_read_kernel(&back, sizeof(back), (void *)previous);
	return back == sibling || at->css == at->root;
}

/*
 * Reports up to WALK_BATCH memcgs, beginning at `walk.css`. It runs under rcu_read_lock(), so no css is freed within a run;
 * between runs `walk.css` may be freed.
 */
int test_run_walk(struct bpf_raw_tracepoint_args *ctx)
{
	int zero = 0, i;
	struct walk_state *at = walk.lookup(&zero);
	u64 parent;

	if (!at)
		return -1;
	at->count = 0;
	at->done = 0;
	if (!at->css) {
		at->css = current_css();
		at->visited = 0;
		for (i = 0; i < 64; i++) {
			parent = KMW_READ(u64, at->css, cgroup_subsys_state__parent);
			if (!parent)
				break;
			at->css = parent;
		}
		at->root = at->css;
	} else if (!still_there(at)) {
		at->done = WALK_LOST;
		return 0;
	}
	for (i = 0; i < WALK_STEPS; i++) {
		if (walk_step(at))
			break;
	}
	at->serial_nr = KMW_READ(u64, at->css, cgroup_subsys_state__serial_nr);
	return 0;
}
