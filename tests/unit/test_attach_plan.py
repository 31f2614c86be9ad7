# SPDX-License-Identifier: GPL-2.0-only
"""The plan for kernels whose facts were recorded on them, and for what they would be without this or that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmemwatch.attach.plan import FENTRY, FEXIT, KINDS, KPROBE, KRETPROBE, Plan, Signal, plan
from kmemwatch.errors import UnsupportedError, UsageError
from kmemwatch.kernel import facts as facts_module
from kmemwatch.kernel.facts import Facts
from kmemwatch.maps.defines import defines
from kmemwatch.maps.structs import constant
from tests.unit.fake_source import FACTS_DIR, recorded_facts

RECORDED = tuple(sorted(path.stem for path in FACTS_DIR.glob("*.json")))
DEBIAN = tuple(name for name in RECORDED if name.startswith("debian"))
LOCKED = "6.18-lockdown"
DROPPED = {"bpffs"}
"""Facts that were recorded and are not read any more."""
NO_CHILD_CACHES: dict[str, tuple[str, ...]] = {"caches": (), "ids": (), "recharge": (), "slabs": ()}
NAMES = ("pins", "alloc", "alloc-bulk", "free", "free-bulk", "charge", "lifecycle", *NO_CHILD_CACHES)

TRACEPOINT_LIFE = "raw_tp:cgroup_mkdir+cgroup_rmdir+cgroup_release"
FUNCTION_LIFE = "mem_cgroup_css_online+mem_cgroup_css_offline+mem_cgroup_css_released"
ALLOC_TP = "raw_tp:kmem_cache_alloc+kmalloc"
FREE_TP = "raw_tp:kmem_cache_free+kfree"
FREE_FUNCTIONS = ("fentry:kmem_cache_free+kfree", "kprobe:kmem_cache_free+kfree")
FREE_BULK = ("kprobe:kmem_cache_free_bulk", "fentry:kmem_cache_free_bulk")
CHARGE_FUNCTIONS = ("fentry:__mod_memcg_state", "kprobe:__mod_memcg_state")
LIFE = (f"fentry:{FUNCTION_LIFE}", f"kprobe:{FUNCTION_LIFE}", TRACEPOINT_LIFE)
"""Whole candidates, best first, of one signal."""


def signal(chosen: Plan, name: str) -> Signal:
    (found,) = [signal for signal in chosen.signals if signal.name == name]
    return found


def names(chosen: Plan) -> dict[str, tuple[str, ...]]:
    return {signal.name: tuple(option.name for option in signal.candidates) for signal in chosen.signals}


def test_all_kernels_of_the_promise_are_recorded() -> None:
    debian = {"debian-5.10", "debian-6.1", "debian-6.12", "debian-7.2"}
    assert {LOCKED, "lab-patched", "lab-baseline"} | debian <= set(RECORDED)


@pytest.mark.parametrize("name", RECORDED)
def test_facts_survive_json(name: str) -> None:
    facts = recorded_facts(name)
    assert Facts.from_json(facts.to_json()) == facts
    recorded, now = json.loads((FACTS_DIR / f"{name}.json").read_text()), json.loads(facts.to_json())
    assert recorded.keys() - now.keys() <= DROPPED
    kept = {key: value for key, value in recorded.items() if key not in DROPPED}
    assert {key: now[key] for key in kept} == kept, "facts that came later are left at their default"


@pytest.mark.parametrize("name", RECORDED)
def test_signals_and_their_order(name: str) -> None:
    chosen = plan(recorded_facts(name))
    assert tuple(signal.name for signal in chosen.signals) == NAMES
    for found in chosen.signals:
        assert found.candidates or found.skipped, f"{found.name}: neither a way nor a reason"


def test_under_lockdown_without_kprobes_raw_tracepoints_do_the_work() -> None:
    chosen = plan(recorded_facts(LOCKED))
    assert names(chosen) == {
        "pins": ("test_run:walk+peek+peek_many",),
        "alloc": (ALLOC_TP,),
        "alloc-bulk": (),
        "free": (FREE_TP,),
        "free-bulk": (),
        "charge": ("raw_tp:mod_memcg_state",),
        "lifecycle": (TRACEPOINT_LIFE,),
        **NO_CHILD_CACHES,
    }
    refused = "the kernel refuses a test program for kfree: Operation not permitted"
    no_kprobes = "kprobe: this kernel has no kprobes (CONFIG_KPROBE_EVENTS)"
    assert signal(chosen, "alloc-bulk").skipped == (f"fexit: {refused}", no_kprobes)
    assert signal(chosen, "free-bulk").skipped == (
        no_kprobes,
        f"fentry: {refused}",
        "raw_tp: no tracepoint rcu_invoke_kfree_bulk_callback",
    )
    assert signal(chosen, "lifecycle").skipped == (f"fentry: {refused}", no_kprobes)
    assert "rmdir" in (signal(chosen, "lifecycle").candidates[0].limits or "")


def test_debian_6_1() -> None:
    chosen = plan(recorded_facts("debian-6.1"))
    functions = "kmem_cache_alloc+kmem_cache_alloc_lru+kmem_cache_alloc_node+__kmem_cache_alloc_node"
    assert names(chosen) == {
        "pins": ("test_run:walk+peek+peek_many",),
        "alloc": (ALLOC_TP, f"fexit:{functions}", f"kprobe:{functions}"),
        "alloc-bulk": ("fexit:kmem_cache_alloc_bulk", "kprobe:kmem_cache_alloc_bulk"),
        "free": (FREE_TP, *FREE_FUNCTIONS),
        "free-bulk": FREE_BULK,
        "charge": CHARGE_FUNCTIONS,
        "lifecycle": LIFE,
        **NO_CHILD_CACHES,
    }
    assert signal(chosen, "charge").skipped == ("raw_tp: no tracepoint mod_memcg_state",)


@pytest.mark.parametrize("name", ["debian-6.12", "debian-7.2"])
def test_debian_6_12_and_7_2(name: str) -> None:
    chosen = plan(recorded_facts(name))
    found = names(chosen)
    assert found["alloc"][0] == ALLOC_TP
    assert found["alloc"][1].startswith("fexit:kmem_cache_alloc_noprof+kmem_cache_alloc_lru_noprof+")
    assert "+__kmalloc_noprof" in found["alloc"][1]
    hooks = {hook.target: hook for hook in signal(chosen, "alloc").candidates[1].hooks}
    assert {hook.kind for hook in hooks.values()} == {FEXIT}
    kmalloc = {"USE_fexit___kmalloc": 1, "GFP_AT___kmalloc": 1, "RETURN_AT___kmalloc": 2}
    assert hooks["__kmalloc_noprof"].macros == kmalloc
    assert hooks["__kmalloc_node_noprof"].gfp_at == hooks["__kmalloc_node_track_caller_noprof"].gfp_at == 2
    assert found["alloc-bulk"] == ("fexit:kmem_cache_alloc_bulk_noprof", "kprobe:kmem_cache_alloc_bulk_noprof")
    assert found["free"] == (FREE_TP, *FREE_FUNCTIONS)
    assert found["lifecycle"] == LIFE
    tracepoint = ("raw_tp:mod_memcg_state",) if name == "debian-7.2" else ()
    assert found["charge"] == (*tracepoint, *CHARGE_FUNCTIONS)


def test_what_is_allocated_in_bulk_is_counted_at_return_where_that_sees_failures() -> None:
    fexit, kprobe = signal(plan(recorded_facts("debian-7.2")), "alloc-bulk").candidates
    assert [(hook.program, hook.return_at) for hook in fexit.hooks] == [("fexit_kmem_cache_alloc_bulk", 4)]
    assert [hook.program for hook in kprobe.hooks] == ["kprobe_kmem_cache_alloc_bulk"]


SHEAF = "__rcu_free_sheaf_prepare"


def test_sheaves_of_kfree_rcu_are_followed_where_there_are_any() -> None:
    facts = recorded_facts("debian-7.2")
    found = signal(plan(facts), "free-bulk")
    assert [option.name for option in found.candidates] == [f"{name}+{SHEAF}" for name in FREE_BULK]
    programs = ["kprobe_kmem_cache_free_bulk", f"kprobe_{SHEAF}"]
    assert [hook.program for hook in found.candidates[0].hooks] == programs
    assert [option.limits for option in found.candidates] == [None, None]
    assert signal(plan(recorded_facts("debian-6.12")), "free-bulk").candidates[0].limits is None


def test_sheaves_that_cannot_be_followed_are_said() -> None:
    facts = recorded_facts("debian-7.2")
    inlined = replace(facts, symbols={name: at for name, at in (facts.symbols or {}).items() if name != SHEAF})
    unseen = "misses objects that kfree_rcu() frees through a sheaf"
    for option in signal(plan(inlined), "free-bulk").candidates:
        assert option.name in FREE_BULK
        assert option.limits == f"no function {SHEAF}: {unseen}"
    traced = {**facts.tracepoint_args, "rcu_invoke_kfree_bulk_callback": ("const char *", "unsigned long", "void **")}
    (left,) = signal(plan(replace(facts, tracepoint_args=traced), ("fentry", "kprobe")), "free-bulk").candidates
    assert unseen in (left.limits or "")


def test_debian_5_10_has_no_cache_in_its_tracepoints() -> None:
    chosen = plan(recorded_facts("debian-5.10"))
    alloc = signal(chosen, "alloc")
    tracepoints = ("kmem_cache_alloc", "kmem_cache_alloc_node", "kmalloc", "kmalloc_node")
    assert tuple(hook.target for hook in alloc.candidates[0].hooks) == tracepoints
    assert "HAVE_CACHE_IN_TP_ALLOC" not in chosen.macros
    assert plan(recorded_facts("debian-6.1")).macros["HAVE_CACHE_IN_TP_ALLOC"] == 1
    free = signal(chosen, "free")
    assert tuple(option.name for option in free.candidates) == FREE_FUNCTIONS
    assert free.skipped == ("raw_tp: tracepoint kmem_cache_free comes after the object has lost its owner",)
    charge = signal(chosen, "charge")
    assert "MEMCG_KMEM" in charge.skipped[0]
    assert tuple(option.name for option in charge.candidates) == (
        "fexit:__memcg_kmem_charge,fentry:__memcg_kmem_uncharge",
        "kprobe:__memcg_kmem_charge+__memcg_kmem_uncharge",
    )
    assert [option.limits for option in charge.candidates] == [
        None,
        "also counts charges that the kernel refuses",
    ]
    assert names(chosen)["lifecycle"] == LIFE


@pytest.mark.parametrize(("name", "recharges"), [("lab-patched", True), ("lab-baseline", False)])
def test_kernels_with_child_caches(name: str, recharges: bool) -> None:
    chosen = plan(recorded_facts(name))
    found = names(chosen)
    stock = names(plan(recorded_facts("debian-6.1")))
    assert {name: ways for name, ways in found.items() if name not in NO_CHILD_CACHES} == {
        name: ways for name, ways in stock.items() if name not in NO_CHILD_CACHES
    }
    assert [way.partition(":")[0] for way in found["caches"]] == ["fexit", "kretprobe"]
    assert [way.partition(":")[0] for way in found["ids"]] == ["fexit", "kretprobe"]
    assert bool(found["recharge"]) is recharges
    if not recharges:
        assert signal(chosen, "recharge").skipped
    assert found["slabs"] == ("test_run:scan",)


def test_slabs_are_found_where_the_kernel_tells_where_its_memory_is() -> None:
    facts = recorded_facts("lab-patched")
    assert signal(plan(replace(facts, kcore=None)), "slabs").candidates, "None is not False"
    hidden = signal(plan(replace(facts, kcore=False)), "slabs")
    assert (hidden.candidates, hidden.applies) == ((), True)
    assert hidden.skipped[0].startswith("/proc/kcore cannot be read")


@pytest.mark.parametrize(
    ("offsets", "at"),
    [
        ({"page__compound_order": 17, "folio__flags_1": 64}, 64 + 17),
        ({"folio__folio_order": 81, "folio__flags_1": 64}, 81),
        ({"folio__flags_1": 64}, 64),
        ({}, None),
    ],
)
def test_where_the_order_of_a_compound_page_is(offsets: dict[str, int], at: int | None) -> None:
    facts = recorded_facts("lab-patched")
    others = {name: offset for name, offset in facts.offsets.items() if not name.startswith(("page__comp", "folio"))}
    heads = {"page__compound_head": facts.offsets["page__compound_head"]}
    found = replace(facts, offsets={**others, **heads, **offsets})
    assert defines(found).values.get("COMPOUND_ORDER") == at
    assert bool(signal(plan(found), "slabs").candidates) is (at is not None)


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("kind", ["raw_tp", "fentry", "kprobe"])
def test_without_a_kind(name: str, kind: str) -> None:
    whole, chosen = plan(recorded_facts(name)), plan(recorded_facts(name), (kind,))
    banned = {kind, FEXIT} if kind == "fentry" else {kind}
    for before, after in zip(whole.signals, chosen.signals, strict=True):
        kept = [option for option in before.candidates if not banned & {hook.kind for hook in option.hooks}]
        assert list(after.candidates) == kept, "what is left keeps its order"
        if len(kept) < len(before.candidates):
            assert any("left out by --without" in reason for reason in after.skipped)


@pytest.mark.parametrize("name", RECORDED)
def test_without_everything_what_needs_no_hook_is_left(name: str) -> None:
    chosen = plan(recorded_facts(name), ("raw_tp", "fentry", "kprobe"))
    needs_no_hook = {"pins", "slabs"} if name.startswith("lab-") else {"pins"}
    assert {name for name, options in names(chosen).items() if options} == needs_no_hook


def test_a_kind_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="no attachment is called uprobe") as caught:
        plan(recorded_facts(LOCKED), ("raw_tp", "uprobe"))
    assert caught.value.hint == "there are raw_tp, fentry, kprobe"


# What is not there, or not known


HOPELESS: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"btf": False}, "no BTF", "CONFIG_DEBUG_INFO_BTF"),
    ({"btf": None}, "cannot be read", "apt-get install libbpf1"),
    ({"lockdown": "confidentiality"}, "lockdown=confidentiality", "integrity"),
    ({"privileged": False}, "CAP_BPF", "sudo"),
    ({"hierarchy": None}, "memory controller is not enabled", "cgroup_disable=memory"),
)


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize(("change", "message", "hint"), HOPELESS)
def test_where_nothing_can_work(name: str, change: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        plan(replace(recorded_facts(name), **change))
    assert hint in (caught.value.hint or "")
    assert "\n" not in str(caught.value)


def test_what_could_not_be_checked_is_tried() -> None:
    facts = recorded_facts("debian-6.1")
    unknown = replace(facts, privileged=None, kprobes=None, fentry=None, lockdown=None)
    assert names(plan(unknown)) == names(plan(facts)), "None is not False"


@pytest.mark.parametrize("name", RECORDED)
def test_symbols_that_cannot_be_read_are_taken_from_btf(name: str) -> None:
    facts = recorded_facts(name)
    with_symbols, without = names(plan(facts)), names(plan(replace(facts, symbols=None)))
    for signal_name, candidates in with_symbols.items():
        assert len(without[signal_name]) >= len(candidates)
        assert without[signal_name][:1] == candidates[:1]


def test_a_tracepoint_that_is_missing_gives_way_to_functions() -> None:
    facts = recorded_facts("debian-7.2")
    for gone, signal_name, instead in (
        ("kmalloc", "alloc", "fexit:"),
        ("kfree", "free", FREE_FUNCTIONS[0]),
        ("mod_memcg_state", "charge", CHARGE_FUNCTIONS[0]),
    ):
        args = {name: value for name, value in facts.tracepoint_args.items() if name != gone}
        found = signal(plan(replace(facts, tracepoint_args=args)), signal_name)
        assert f"raw_tp: no tracepoint {gone}" in found.skipped
        assert found.candidates[0].name.startswith(instead)


def test_a_function_that_was_inlined_away() -> None:
    facts = recorded_facts("debian-6.12")
    symbols = {name: at for name, at in (facts.symbols or {}).items() if name != "mem_cgroup_css_released"}
    found = signal(plan(replace(facts, symbols=symbols)), "lifecycle")
    assert [option.name for option in found.candidates] == [TRACEPOINT_LIFE]
    assert "kprobe: no function mem_cgroup_css_released" in found.skipped


@pytest.mark.parametrize(
    ("member", "lost"),
    [
        ("page__compound_head", {"alloc", "alloc-bulk", "free", "free-bulk"}),
        ("kernfs_node__id", set(NAMES)),
        ("mem_cgroup__vmstats", {"pins"}),
        ("cgroup_root__hierarchy_id", {"lifecycle"}),
        ("mem_cgroup__kmem__usage", set()),
    ],
)
def test_a_member_that_btf_lacks(member: str, lost: set[str]) -> None:
    facts = recorded_facts("debian-6.1")
    offsets = {name: at for name, at in facts.offsets.items() if name != member}
    chosen = plan(replace(facts, offsets=offsets))
    assert {found.name for found in chosen.signals if not found.candidates} == lost | NO_CHILD_CACHES.keys()
    for found in chosen.signals:
        if not found.candidates and found.name not in NO_CHILD_CACHES:
            assert found.skipped == (f"BTF has no {member.replace('__', '.')}",)


# Macros


def test_macros_follow_the_layout() -> None:
    locked, old = defines(recorded_facts(LOCKED)).values, defines(recorded_facts("debian-6.1")).values
    assert (locked["MEMORY_HIERARCHY_ID"] > 0, old["MEMORY_HIERARCHY_ID"]) == (True, 0)
    assert "PGTY_SLAB" in locked
    assert "PG_SLAB" not in locked
    assert "PG_SLAB" in old
    assert locked["OBJ_EXT_BYTES"] in (8, 16)
    assert old["OBJ_EXT_BYTES"] == 8
    assert old["VMSTATS_POINTER"] == 1
    assert old["MEMCG_KMEM"] == recorded_facts("debian-6.1").enums["memcg_stat_item"]["MEMCG_KMEM"]
    assert f"-DMEMCG_KMEM={old['MEMCG_KMEM']}" in plan(recorded_facts("debian-6.1")).cflags()


def test_a_statistic_more_than_the_programs_hold() -> None:
    facts = recorded_facts(LOCKED)
    many = replace(facts, sizes={**facts.sizes, "vmstats_elements": 1000})
    assert defines(many).values["STATS_COUNT"] == constant("STATS_MAX")


@pytest.mark.parametrize("name", RECORDED)
def test_era_of_all_recorded_kernels(name: str) -> None:
    facts = recorded_facts(name)
    expected = {"lab-patched": facts_module.RECHARGE, "lab-baseline": facts_module.PER_MEMCG}.get(
        name, facts_module.OBJCG
    )
    assert facts_module.era(facts) == expected
    assert facts_module.has_patchset(facts) is (expected == facts_module.RECHARGE)


def test_eras_by_symbol_and_not_by_version() -> None:
    facts = recorded_facts(LOCKED)
    symbols = dict(facts.symbols or {})
    patched = replace(facts, symbols={**symbols, "__memcg_kmem_recharge_slab": 1})
    assert (facts_module.era(patched), facts_module.has_patchset(patched)) == (facts_module.RECHARGE, True)
    assert facts_module.era(replace(facts, symbols={**symbols, "memcg_create_kmem_cache": 1})) == facts_module.PER_MEMCG
    nothing = replace(facts, symbols=None, btf=None, function_args={}, offsets={})
    assert (facts_module.era(nothing), facts_module.has_patchset(nothing)) == (None, None)


# Any kernel at all


def _subset(draw: st.DrawFn, mapping: Mapping[str, Any] | None) -> dict[str, Any]:
    left_out = draw(st.sets(st.sampled_from(sorted(mapping)), max_size=6)) if mapping else set()
    return {key: value for key, value in (mapping or {}).items() if key not in left_out}


@st.composite
def damaged_facts(draw: st.DrawFn) -> Facts:
    """A recorded kernel, of which some facts are missing or not known."""
    facts = recorded_facts(draw(st.sampled_from(RECORDED)))
    changes: dict[str, Any] = {}
    for name in ("privileged", "kprobes", "btf", "fentry", "current_task_btf"):
        changes[name] = draw(st.sampled_from([True, False, None]))
    for name in ("function_args", "tracepoint_args", "offsets", "sizes", "enums"):
        changes[name] = draw(st.just({}) | st.just(_subset(draw, getattr(facts, name))))
    changes["symbols"] = draw(st.none() | st.just(_subset(draw, facts.symbols)))
    changes["lockdown"] = draw(st.sampled_from([None, "none", "integrity"]))
    changes["gfp_account"] = draw(st.none() | st.just(facts.gfp_account))
    kept = draw(st.sets(st.sampled_from(sorted(changes))))
    return replace(facts, **{name: changes[name] for name in kept})


@given(damaged_facts(), st.sets(st.sampled_from(KINDS)))
def test_any_kernel_gets_a_plan_or_a_reason(facts: Facts, without: set[str]) -> None:
    try:
        chosen = plan(facts, tuple(without))
    except UnsupportedError:
        return
    for found in chosen.signals:
        assert found.candidates or found.skipped
        assert all(reason and "\n" not in reason for reason in found.skipped)
        for option in found.candidates:
            assert option.hooks
            assert not without & {hook.kind for hook in option.hooks}
    assert all(isinstance(value, int) for value in chosen.defines.values.values())


def test_facts_hold_no_secret_of_the_host() -> None:
    for name in RECORDED:
        text = (FACTS_DIR / f"{name}.json").read_text()
        assert set(json.loads(text)) <= {field.name for field in fields(Facts)} | DROPPED
        assert "hostname" not in text


@pytest.mark.parametrize("name", RECORDED)
def test_latency_is_a_signal_only_when_asked_for(name: str) -> None:
    facts = recorded_facts(name)
    chosen = plan(facts, latency=True)
    assert [one for one in chosen.signals if one.name != "latency"] == list(plan(facts).signals)
    found = signal(chosen, "latency")
    order = [one.name for one in chosen.signals]
    assert order.index("latency") < order.index("recharge")
    if name == LOCKED:
        refused = "fentry: the kernel refuses a test program for kfree: Operation not permitted"
        assert found.skipped == (refused, "kprobe: this kernel has no kprobes (CONFIG_KPROBE_EVENTS)")
        assert (found.candidates, found.applies) == ((), True)
        return
    kinds = [[hook.kind for hook in option.hooks] for option in found.candidates]
    assert [set(each) for each in kinds] == [{FENTRY, FEXIT}, {KPROBE, KRETPROBE}]
    timed = {hook.program: hook.target for hook in found.candidates[0].hooks}
    suffix = "_noprof" if name in ("debian-6.12", "debian-7.2") else ""
    assert timed["fexit_timed_kmem_cache_alloc"] == f"kmem_cache_alloc{suffix}"
    assert ("fentry_timed___memcg_kmem_recharge_slab" in timed) is (name == "lab-patched")
    assert not plan(facts, ("fentry", "kprobe"), latency=True).signals[order.index("latency")].candidates


@pytest.mark.parametrize(
    ("text", "nokmem"),
    [
        ("BOOT_IMAGE=/vmlinuz quiet", False),
        ("quiet cgroup.memory=nokmem\n", True),
        ("cgroup.memory=nosocket,nokmem", True),
        ("cgroup.memory=nosocket cgroup.memory=nokmem", True),
        ("cgroup.memory=nosocket", False),
        ("other.cgroup.memory=nokmem", False),
    ],
)
def test_kernel_memory_that_nobody_is_charged_for(text: str, nokmem: bool, tmp_path: Path) -> None:
    file = tmp_path / "cmdline"
    file.write_text(text)
    assert facts_module._nokmem(file) is nokmem
    assert facts_module._nokmem(tmp_path / "missing") is None


@pytest.mark.parametrize("name", RECORDED)
def test_what_a_kernel_without_accounting_cannot_tell_is_said(name: str) -> None:
    chosen = {signal.name: signal for signal in plan(replace(recorded_facts(name), nokmem=True)).signals}
    assert (chosen["charge"].candidates, chosen["charge"].applies) == ((), False)
    assert "cgroup.memory=nokmem" in chosen["charge"].skipped[0]
    for signal in ("free", "pins"):
        assert chosen[signal].candidates
        assert all("cgroup.memory=nokmem" in (option.limits or "") for option in chosen[signal].candidates)
    assert not any("nokmem" in (option.limits or "") for option in chosen["alloc"].candidates)


def test_the_number_of_objects_is_read_where_objects_may_have_pages_of_their_own() -> None:
    facts = recorded_facts("debian-6.12")
    told = replace(facts, sizes={**facts.sizes, "kfence_metadata": 1}, offsets={**facts.offsets, "slab__objects": 42})
    assert defines(told).values["KFENCE"] == 1
    assert "KFENCE" not in defines(replace(told, sizes=facts.sizes)).values
    far = replace(told, offsets={**told.offsets, "slab__objects": 2})
    assert "KFENCE" not in defines(far).values
