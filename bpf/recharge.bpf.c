/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Signal recharge: what __memcg_kmem_recharge_slab(object, gfp) does. It runs after every allocation from a child cache:
 *
 *	memcg = that of the current task; old = whom the slab is charged to
 *	same, or root:   return 0
 *	                 memcg_charge_kmem(memcg, gfp, pages), else return -ENOMEM
 *	slab taken:      memcg_uncharge_kmem(old, pages); return 0
 *	others came in:  memcg_uncharge_kmem(memcg, pages); return 0
 *
 * At entry it is counted, and only when the two differ it is followed to its end, in a frame that belongs to the task:
 * the charge says who takes the slab and how many pages it has, the uncharge says who has won. Comparing the owner before
 * and after would not do: a slab may move twice meanwhile, and two tasks of one memcg may both have wanted it.
 *
 * The task may be moved to another memcg, or others may take the slab, after we have looked and before the kernel does.
 * So a charge outside of any frame, nearly always that of a new slab, begins a late one. The next check of that task
 * drops it; but if an end comes first, it is the end of a recharge that did not look like one.
 *
 * An interrupt may uncharge slabs that it frees in between, in the name of the task. When that makes it impossible to
 * say who has won, the recharge is lost, and counted as such.
 */

enum recharge_count { RECHARGE_CHECKS, RECHARGE_FAILURES, RECHARGE_LOST_RACES, RECHARGE_COUNTS };

BPF_PERCPU_ARRAY(recharge_counts, u64, RECHARGE_COUNTS); /* index: enum recharge_count; calls */

enum recharge_from { FROM_NONE, FROM_ONLINE, FROM_DYING };

struct recharge_key {
	u64 cache;      /* address of the struct kmem_cache of the child cache */
	u64 from_id;    /* kernfs id; 0: the slab was charged to nobody */
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
	u64 old;          /* struct mem_cgroup; 0: nobody */
	u64 to;           /* struct mem_cgroup that was charged; 0: nobody yet */
	u64 to_id;        /* kernfs id */
	u64 from_id;      /* kernfs id */
	u64 pages;
	u32 from_online;
	u32 old_uncharged;
	u32 to_uncharged;
	u32 unused;
};

#define LATE 1 /* instead of the address of an object, which is not known yet */
#define FRAMES 4 /* an interrupt in a charge that reclaims; a power of 2 */

struct frames {
	u64 depth;
	struct frame frame[FRAMES];
};

/* Tasks that are inside a recharge check at once. */
#define MAX_RECHARGING 1024

BPF_HASH(recharging, u64, struct frames, MAX_RECHARGING); /* key: struct task_struct */
BPF_ARRAY(no_frames, struct frames, 1);                   /* zeros: the stack of a program is too small for them */
BPF_ARRAY(recharging_tasks, u64, 1);                      /* entries of `recharging`, so that most calls need not look */

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

/* 0: there is no room. */
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
		/* Ends that were missed have piled up: the frames are somebody else's. */
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

/* Of the current task; 0: it is in no frame, as nearly always. */
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

/* `follow_all`: the end will not tell which object it is about, so that nested calls have to be followed as well. */
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
		frame->old = memcg; /* the first that gives something up */
	if (memcg == frame->old) {
		/* The slab has just changed hands, and its reference to the old memcg is ours to give up. */
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
		event->from_online = frame->from_online;
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
		return; /* the root has nothing charged; or somebody moved it first, to where it is wanted */
	} else if (frame->to_uncharged && !frame->old_uncharged) {
		count_recharge(RECHARGE_LOST_RACES);
	} else if (!frame->to_uncharged && (frame->old_uncharged || !frame->old)) {
		count_move(frame);
	} else {
		count_lost(LOST_RECHARGE_UNFOLLOWED, 1);
	}
}

/* `object` 0: not told; it is the latest that was followed. */
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
			return 0; /* a nested call that was not worth following */
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

/* With kprobes, at the return the arguments are gone. */
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
