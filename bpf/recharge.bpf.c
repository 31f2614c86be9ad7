/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Signal recharge: what __memcg_kmem_recharge_slab(object, gfp) does, which runs after every allocation from a child cache:
 *
 *	memcg = that of the current task; old = the memcg that the slab is charged to
 *	same, or root:   return 0
 *	                 memcg_charge_kmem(memcg, gfp, pages), else return -ENOMEM
 *	slab taken:      memcg_uncharge_kmem(old, pages); return 0
 *	others came in:  memcg_uncharge_kmem(memcg, pages); return 0
 *
 * The entry program counts every check. When the two memcgs differ, the check is followed to its end in a frame of the task:
 * the charge shows which memcg takes the slab and how many pages it has, the uncharge shows which memcg has lost it.
 * Comparing the owner before and after would not be enough: a slab may move twice meanwhile, and two tasks of one memcg may
 * both have tried to take it.
 *
 * Between this program and the kernel's own look, the task may be moved to another memcg, or another task may take the slab.
 * So a charge outside of any frame, nearly always that of a new slab, begins a LATE frame. The next check of that task
 * drops it. If a return comes first, it is the return of such a check.
 *
 * An interrupt may free slabs in between, and then uncharges them in the name of the task. When the outcome is unclear for
 * that reason, the check is counted as LOST_RECHARGE_UNFOLLOWED.
 */

enum recharge_count { RECHARGE_CHECKS, RECHARGE_FAILURES, RECHARGE_LOST_RACES, RECHARGE_COUNTS };

BPF_PERCPU_ARRAY(recharge_counts, u64, RECHARGE_COUNTS); /* index: enum recharge_count; calls */

enum recharge_from { FROM_NONE, FROM_ONLINE, FROM_DYING };

struct recharge_key {
	u64 cache;      /* address of the struct kmem_cache of the child cache */
	u64 from_id;    /* kernfs id; 0: no memcg was charged for the slab */
	u64 to_id;      /* kernfs id */
	u64 from_state; /* enum recharge_from, when the slab moved */
};

struct recharge_value {
	u64 recharges; /* slabs */
	u64 pages;
};

/* Keys that are counted at once. User space removes those of released memcgs. */
#define MAX_RECHARGES 16384

BPF_PERCPU_HASH(recharges, struct recharge_key, struct recharge_value, MAX_RECHARGES);

struct frame {
	u64 object;
	u64 cache;
	u64 old;          /* struct mem_cgroup that the slab is charged to; 0: none */
	u64 to;           /* struct mem_cgroup that was charged; 0: none yet */
	u64 to_id;        /* kernfs id */
	u64 from_id;      /* kernfs id */
	u64 pages;
	u32 from_online;
	u32 old_uncharged;
	u32 to_uncharged;
	u32 unused;
};

#define LATE 1   /* in place of the address of an object, which is not known yet */
#define FRAMES 4 /* an interrupt in a charge that reclaims; a power of 2 */

struct frames {
	u64 depth;
	struct frame frame[FRAMES];
};

/* Tasks that are inside a recharge check at once. */
#define MAX_RECHARGING 1024

BPF_HASH(recharging, u64, struct frames, MAX_RECHARGING); /* key: struct task_struct */
BPF_ARRAY(no_frames, struct frames, 1);                   /* zeros to copy: the stack of a program is too small for them */
BPF_ARRAY(recharging_tasks, u64, 1);                      /* entries of `recharging`: at 0, no call needs a lookup */

static __always_inline void count_recharge(int which)
{
	u64 *count = recharge_counts.lookup(&which);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline u64 *tasks_recharging(void)
{
	int zero = 0;

	return recharging_tasks.lookup(&zero);
}

/* A new frame of the current task; 0 when there is no room. */
static __always_inline struct frame *push_frame(u64 object, u64 cache, u64 old)
{
	u64 task = bpf_get_current_task();
	struct frames *frames = recharging.lookup(&task);
	struct frames *zeros;
	struct frame *frame;
	u64 *tasks = tasks_recharging();
	int zero = 0;

	if (!frames) {
		zeros = no_frames.lookup(&zero);
		if (!zeros || recharging.insert(&task, zeros)) {
			count_lost(LOST_RECHARGE_UNFOLLOWED, 1);
			return 0;
		}
		if (tasks)
			__sync_fetch_and_add(tasks, 1);
		frames = recharging.lookup(&task);
		if (!frames)
			return 0;
	}
	if (frames->depth >= FRAMES) {
		/* The frames are left over from returns that were missed. */
		count_lost(LOST_RECHARGE_UNFOLLOWED, FRAMES);
		frames->depth = 0;
	}
	frame = &frames->frame[frames->depth & (FRAMES - 1)];
	__builtin_memset(frame, 0, sizeof(*frame));
	frame->object = object;
	frame->cache = cache;
	frame->old = old;
	frames->depth++;
	return frame;
}

static __always_inline void pop_frame(struct frames *frames, u64 task, u64 *tasks)
{
	frames->depth--;
	if (!frames->depth) {
		recharging.delete(&task);
		__sync_fetch_and_add(tasks, -1);
	}
}

/* Frames of the current task; 0: it has none, as nearly always. */
static __always_inline struct frames *own_frames(u64 *task, u64 **tasks)
{
	struct frames *frames;

	*tasks = tasks_recharging();
	if (!*tasks || !**tasks)
		return 0;
	*task = bpf_get_current_task();
	frames = recharging.lookup(task);
	return frames && frames->depth ? frames : 0;
}

static __always_inline struct frame *top_of(struct frames *frames)
{
	return &frames->frame[(frames->depth - 1) & (FRAMES - 1)];
}

/* `follow_all`: the return program will not know the object, so nested calls have to be followed as well. */
static __always_inline int recharge_entry(u64 object, int follow_all)
{
	struct slab_of slab;
	u64 task, *tasks;
	struct frames *frames = own_frames(&task, &tasks);

	count_recharge(RECHARGE_CHECKS);
	if (frames && top_of(frames)->object == LATE)
		pop_frame(frames, task, tasks);
	if (find_slab(object, &slab)) {
		count_lost(LOST_RECHARGE_UNFOLLOWED, 1);
		return 0;
	}
	if (slab.memcg != current_memcg() || (follow_all && own_frames(&task, &tasks)))
		push_frame(object, slab.cache, slab.memcg);
	return 0;
}

static __always_inline struct frame *top_frame(void)
{
	u64 task, *tasks;
	struct frames *frames = own_frames(&task, &tasks);

	return frames ? top_of(frames) : 0;
}

static __always_inline int recharge_charge(u64 memcg, u64 pages)
{
	struct frame *frame = top_frame();

	if (!frame)
		frame = push_frame(LATE, 0, 0);
	if (frame && (!frame->to || frame->object == LATE)) {
		frame->to = memcg;
		frame->to_id = css_cgroup_id(memcg);
		frame->pages = pages;
	}
	return 0;
}

static __always_inline int recharge_uncharge(u64 memcg)
{
	struct frame *frame = top_frame();
	u64 cgroup, css = 0;

	if (!frame || !frame->to)
		return 0;
	if (memcg == frame->to)
		frame->to_uncharged = 1;
	else if (frame->object == LATE && !frame->old)
		frame->old = memcg; /* the first memcg that is uncharged */
	if (memcg == frame->old) {
		/* The slab has just moved. The old memcg exists: the kernel drops the slab's reference to it after this. */
		cgroup = KMW_READ(u64, memcg, cgroup_subsys_state__cgroup);
		bpf_probe_read_kernel(&css, sizeof(css), (void *)(cgroup + OFF_cgroup__subsys + 8 * MEMORY_CGRP_ID));
		frame->from_id = css_cgroup_id(memcg);
		frame->from_online = css == memcg;
		frame->old_uncharged = 1;
	}
	return 0;
}

static __always_inline void count_move(struct frame *frame)
{
	struct recharge_value zero = {}, *value;
	struct recharge_key key = {
		.cache = frame->cache,
		.from_id = frame->from_id,
		.to_id = frame->to_id,
		.from_state = !frame->old ? FROM_NONE : frame->from_online ? FROM_ONLINE : FROM_DYING,
	};
	struct slab_event *event;
	int first = 0;

	value = recharges.lookup(&key);
	if (!value) {
		first = !recharges.insert(&key, &zero); /* another CPU may be as far */
		value = recharges.lookup(&key);
	}
	if (!value) {
		count_lost(LOST_RECHARGE_MAP_FULL, 1);
		return;
	}
	__sync_fetch_and_add(&value->recharges, 1);
	__sync_fetch_and_add(&value->pages, frame->pages);
	if (!first)
		return;
	event = new_slab_event(EVENT_RECHARGE, frame->to_id, frame->cache, CACHE_ID(frame->cache));
	if (event) {
		event->from_id = frame->from_id;
		event->pages = frame->pages;
		events.ringbuf_submit(event, 0);
	}
}

static __always_inline void end_frame(struct frame *frame, int error)
{
	struct slab_event *event;
	u64 to_id;

	if (error) {
		count_recharge(RECHARGE_FAILURES);
		to_id = frame->to ? frame->to_id : css_cgroup_id(current_memcg());
		event = new_slab_event(EVENT_RECHARGE_FAILED, to_id, frame->cache, CACHE_ID(frame->cache));
		if (event) {
			event->from_id = css_cgroup_id(frame->old);
			events.ringbuf_submit(event, 0);
		}
	} else if (!frame->to) {
		return; /* the root is never charged; or another task has moved the slab to the same memcg first */
	} else if (frame->to_uncharged && !frame->old_uncharged) {
		count_recharge(RECHARGE_LOST_RACES);
	} else if (!frame->to_uncharged && (frame->old_uncharged || !frame->old)) {
		count_move(frame);
	} else {
		count_lost(LOST_RECHARGE_UNFOLLOWED, 1);
	}
}

/* `object` 0: not known; then the return belongs to the last frame. */
static __always_inline int recharge_return(u64 object, int error)
{
	u64 task, *tasks;
	struct frames *frames = own_frames(&task, &tasks);
	struct frame *frame;

	if (!frames)
		return 0;
	frame = top_of(frames);
	if (frame->object != LATE) {
		if (object && frame->object != object)
			return 0; /* a nested call that was not followed */
		end_frame(frame, error);
	} else if (!object || find_cache(object, &frame->cache)) {
		count_lost(LOST_RECHARGE_UNFOLLOWED, 1);
	} else {
		end_frame(frame, error);
	}
	pop_frame(frames, task, tasks);
	return 0;
}

/* __memcg_kmem_recharge_slab(object, gfp), at entry and at return: 0 or -ENOMEM. */
#ifdef USE_fentry___memcg_kmem_recharge_slab
int fentry___memcg_kmem_recharge_slab(unsigned long long *ctx)
{
	return recharge_entry(ctx[0], 0);
}
#endif

#ifdef USE_fexit___memcg_kmem_recharge_slab
int fexit___memcg_kmem_recharge_slab(unsigned long long *ctx)
{
	return recharge_return(ctx[0], (int)ctx[RETURN_AT___memcg_kmem_recharge_slab]);
}
#endif

/* A kretprobe no longer has the arguments. */
#ifdef USE_kprobe___memcg_kmem_recharge_slab
int kprobe___memcg_kmem_recharge_slab(struct pt_regs *ctx)
{
	count_run(RUN_kprobe___memcg_kmem_recharge_slab);
	return recharge_entry(PT_REGS_PARM1(ctx), 1);
}
#endif

#ifdef USE_kretprobe___memcg_kmem_recharge_slab
int kretprobe___memcg_kmem_recharge_slab(struct pt_regs *ctx)
{
	count_run(RUN_kretprobe___memcg_kmem_recharge_slab);
	return recharge_return(0, (int)PT_REGS_RC(ctx));
}
#endif

/* memcg_charge_kmem(memcg, gfp, pages), memcg_uncharge_kmem(memcg, pages) */
#ifdef USE_fentry_memcg_charge_kmem
int fentry_memcg_charge_kmem(unsigned long long *ctx)
{
	return recharge_charge(ctx[0], ctx[2]);
}
#endif

#ifdef USE_kprobe_memcg_charge_kmem
int kprobe_memcg_charge_kmem(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_memcg_charge_kmem);
	return recharge_charge(PT_REGS_PARM1(ctx), PT_REGS_PARM3(ctx));
}
#endif

#ifdef USE_fentry_memcg_uncharge_kmem
int fentry_memcg_uncharge_kmem(unsigned long long *ctx)
{
	return recharge_uncharge(ctx[0]);
}
#endif

#ifdef USE_kprobe_memcg_uncharge_kmem
int kprobe_memcg_uncharge_kmem(struct pt_regs *ctx)
{
	count_run(RUN_kprobe_memcg_uncharge_kmem);
	return recharge_uncharge(PT_REGS_PARM1(ctx));
}
#endif
