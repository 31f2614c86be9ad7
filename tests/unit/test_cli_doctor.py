# SPDX-License-Identifier: GPL-2.0-only
"""doctor: what it says about recorded hosts, and that it says something on any."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given

from kmemwatch.attach.plan import plan
from kmemwatch.cli import doctor
from kmemwatch.cli.doctor import WIDTH, Diagnosis, to_text
from kmemwatch.errors import ShortageError, UnsupportedError, UsageError
from kmemwatch.kernel.facts import Facts
from kmemwatch.model import ABSENT, ATTACHED, FALLBACK, MISSING, Probe
from tests.unit.fake_source import recorded_facts
from tests.unit.test_attach_plan import LOCKED, RECORDED, damaged_facts

TREE = Path(__file__).parents[2]


def attached(facts: Facts, **changes: Any) -> Diagnosis:
    """As if every first candidate were taken."""
    chosen = plan(facts)
    probes = tuple(
        Probe(found.name, found.candidates[0].name, ATTACHED, found.candidates[0].limits)
        if found.candidates
        else Probe(found.name, None, MISSING if found.applies else ABSENT, "; ".join(found.skipped))
        for found in chosen.signals
    )
    found = Diagnosis(facts, True, chosen, None, probes, None, True, True)
    return replace(found, **changes)


def words(text: str) -> str:
    """Without the line breaks that the width made."""
    return " ".join(text.split())


@pytest.mark.parametrize("name", RECORDED)
def test_a_report_fits_80_columns_and_names_every_signal(name: str) -> None:
    text = to_text(attached(recorded_facts(name)))
    assert all(len(line) <= WIDTH for line in text.splitlines())
    for signal in doctor.GIVES:
        assert f" {signal} " in text


def test_where_everything_works_there_is_nothing_to_change() -> None:
    text = to_text(attached(recorded_facts("debian-6.1")))
    assert "kmemwatch works here, and every signal is complete." in text
    assert "What to change" not in text


def test_what_lockdown_costs_and_what_would_help() -> None:
    text = words(to_text(attached(recorded_facts(LOCKED))))
    assert "kmemwatch works here; missing: alloc-bulk, free-bulk; in part: lifecycle." in text
    assert "missing alloc-bulk" in text
    assert "no kprobes any function can be a hook (CONFIG_KPROBE_EVENTS)" in text
    assert "no fentry the kernel refuses a test program for kfree: Operation not permitted" in text
    assert "lockdown integrity" in text
    assert "for alloc-bulk, free-bulk: a kernel with CONFIG_KPROBE_EVENTS=y" in text


def test_a_fallback_says_what_was_refused() -> None:
    found = attached(recorded_facts("debian-6.1"))
    probe = Probe("charge", "kprobe:__mod_memcg_state", FALLBACK, "fentry: __mod_memcg_state: Invalid argument")
    probes = tuple(probe if old.signal == "charge" else old for old in found.probes or ())
    text = words(to_text(replace(found, probes=probes)))
    assert "partly charge" in text
    assert "not the best way: fentry: __mod_memcg_state: Invalid argument" in text


@pytest.mark.parametrize(
    ("facts", "changes", "advice"),
    [
        ({"gfp_account": None, "tracefs": None}, {}, "mount -t tracefs tracefs /sys/kernel/tracing"),
        ({"symbols": {"kfree": 0}}, {}, "sysctl kernel.kptr_restrict=1"),
        ({}, {"has_bcc": False}, "apt-get install python3-bpfcc"),
        ({}, {"statistics_known": False}, "slab bytes and pins are unknown (?)"),
        ({}, {"accounting_known": False}, "live bytes are unknown (?)"),
        ({}, {"learn_error": "no way to a cache"}, "caches are shown without a name, or not at all: no way to a cache"),
        (
            {"hierarchy": {"version": 2, "hierarchy_id": 0, "mount": None}},
            {},
            "the memory hierarchy is not mounted here",
        ),
        (
            {
                "hierarchy": {"version": 1, "hierarchy_id": 4, "mount": None, "part_at": "/sys/fs/cgroup/memory"},
                "own_cgroup": "/docker/3f9",
            },
            {},
            "its root is nowhere here: kmemwatch's own memory, some 13 MB, is charged to /docker/3f9",
        ),
    ],
)
def test_advice(facts: dict[str, Any], changes: dict[str, Any], advice: str) -> None:
    before = words(to_text(attached(recorded_facts("debian-6.1"))))
    after = words(to_text(attached(replace(recorded_facts("debian-6.1"), **facts), **changes)))
    assert advice not in before
    assert advice in after.partition("What to change")[2]


def test_without_privileges_it_says_what_root_could() -> None:
    facts = replace(recorded_facts(LOCKED), privileged=False, fentry=None, fentry_why=None)
    error = UnsupportedError("no privilege to load BPF programs", hint="run with sudo")
    text = words(to_text(Diagnosis(facts, True, plan(replace(facts, privileged=True)), error)))
    assert "kmemwatch cannot run here: no privilege to load BPF programs" in text
    assert "planned alloc" in text
    assert "? fentry" in text
    assert "- run with sudo" in text


def test_root_of_a_user_namespace_is_told_what_it_is() -> None:
    facts = replace(recorded_facts(LOCKED), privileged=False, host_namespace=False, fentry=None, fentry_why=None)
    with pytest.raises(UnsupportedError, match="not the host's root: this is a user namespace") as caught:
        plan(facts)
    text = words(to_text(Diagnosis(facts, True, None, caught.value)))
    assert "no privileges this is a user namespace; its root is not the host's" in text
    assert "report this" not in text
    assert "with sudo" not in text
    assert "--userns=host" in text


@pytest.mark.parametrize(
    ("facts", "said", "hint"),
    [
        ({"unmounted": ("/sys: not mounted", "mount -t sysfs sysfs /sys")}, "/sys: not mounted", "mount -t sysfs"),
        ({"btf": None, "btf_why": "/sys/kernel/btf/vmlinux: Permission denied: BTF cannot be read"},
         "/sys/kernel/btf/vmlinux: Permission denied", "a container's profile"),
        ({"btf": None, "btf_why": "libbpf: none of libbpf.so.1 can be loaded"}, "libbpf: none of", "apt-get install"),
        ({"hierarchy": None, "hierarchy_why": "/cg: cannot be read: Permission denied"}, "/cg: cannot be read",
         "where it can be read"),
        ({"hierarchy": None, "hierarchy_why": None}, "/proc/cgroups: the memory controller is not", "cgroup_disable"),
    ],
)  # fmt: skip
def test_what_cannot_be_looked_at_is_not_what_the_kernel_lacks(facts: dict[str, Any], said: str, hint: str) -> None:
    found = replace(recorded_facts(LOCKED), **facts)
    with pytest.raises(UnsupportedError) as caught:
        plan(found)
    text = words(to_text(Diagnosis(found, True, None, caught.value)))
    assert f"kmemwatch cannot run here: {said}" in text
    assert hint in text.partition("What to change")[2]


def test_what_was_not_seen_for_want_of_descriptors_could_not_be_checked() -> None:
    facts = replace(
        recorded_facts(LOCKED), btf=None, symbols=None, hierarchy=None, tracefs=None, privileged=None,
        shortage=("/proc/kallsyms: out of file descriptors (the limit is 5)", "ulimit -n 1024"),
    )  # fmt: skip
    with pytest.raises(ShortageError) as caught:
        plan(facts)
    found = Diagnosis(facts, None, None, caught.value)
    text = words(to_text(found))
    assert "What works here could not be checked: /proc/kallsyms: out of file descriptors" in text
    assert text.count(" unknown ") == len(doctor.GIVES)
    for name in ("privileges", "bcc", "BTF", "memory cgroups", "symbols", "tracefs"):
        assert f"? {name}" in text
    assert "missing" not in text
    assert "apt-get" not in text
    assert "ulimit -n 1024" in text.partition("What to change")[2]
    assert Facts.from_json(facts.to_json()) == facts


def test_a_child_that_was_killed_says_nothing_about_the_kernel() -> None:
    facts = recorded_facts("debian-6.1")
    error = ShortageError("the process that attaches the probes ended: SIGKILL", "free memory")
    text = words(to_text(Diagnosis(facts, True, plan(facts), error)))
    assert "What works here could not be checked: the process that attaches" in text
    assert "planned alloc" in text


def test_a_hint_to_run_doctor_is_not_given_by_doctor() -> None:
    facts = recorded_facts(LOCKED)
    error = UnsupportedError("bpf/: error: no such thing", hint="run: kmemwatch doctor, and report what it says")
    text = words(to_text(Diagnosis(facts, True, plan(facts), error)))
    assert "run: kmemwatch doctor" not in text
    assert "report this: kmemwatch doctor --output json has all of it" in text


def test_where_nothing_can_be_planned_all_signals_are_missing() -> None:
    facts = replace(recorded_facts(LOCKED), btf=False, hierarchy=None)
    text = to_text(Diagnosis(facts, False, None, UnsupportedError("no BTF", hint="another kernel")))
    assert text.count("  missing ") == len(doctor.GIVES)
    assert "no memory cgroups" in text.splitlines()[0]
    assert "  ?    memcg events" in text


@given(damaged_facts())
def test_any_host_gets_a_report(facts: Facts) -> None:
    try:
        found = attached(facts)
    except UnsupportedError as error:
        found = Diagnosis(facts, False, None, error)
    assert to_text(found)
    document = json.loads(doctor.to_json(found))
    assert Facts.from_json(json.dumps(document["facts"])) == facts


# The command


def run(monkeypatch: pytest.MonkeyPatch, found: Diagnosis | Exception, *args: str) -> tuple[int, str]:
    def examine(without: tuple[str, ...]) -> Diagnosis:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(doctor, "examine", examine)
    result = CliRunner().invoke(doctor.command, args, standalone_mode=False)
    return (result.return_value if result.exception is None else -1), result.output


def test_exit_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    good = attached(recorded_facts(LOCKED))
    assert run(monkeypatch, good)[0] == 0
    bad = replace(good, error=UnsupportedError("no bcc", hint="install it"), probes=None)
    code, text = run(monkeypatch, bad)
    assert code == 3
    assert "no bcc" in text
    assert run(monkeypatch, UsageError("--without: no attachment is called x"))[0] == -1


def test_json_has_facts_plan_and_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = attached(recorded_facts(LOCKED))
    code, text = run(monkeypatch, found, "--output", "json")
    document = json.loads(text)
    assert code == 0
    assert document["works"] is True
    assert Facts.from_json(json.dumps(document["facts"])) == found.facts
    assert [entry["signal"] for entry in document["plan"]] == list(doctor.GIVES)
    assert document["probes"][1] == {
        "signal": "alloc", "attachment": "raw_tp:kmem_cache_alloc+kmalloc", "status": "attached", "why": None,
    }  # fmt: skip


def kmemwatch(*args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kmemwatch", *args]
    return subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=False, **options)


def test_on_this_machine() -> None:
    done = kmemwatch("doctor", "--output", "json")
    assert done.returncode in (0, 3)
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["works"] == (done.returncode == 0)
    assert document["facts"]["release"] == os.uname().release


@pytest.mark.needs("root", "BTF", "a memory controller", "a tree that all may read")
def test_an_ordinary_user_on_this_machine() -> None:
    """As nobody, who may neither load programs nor look into tracefs."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = kmemwatch("doctor", user="nobody", group="nogroup", extra_groups=[], env=env)
    assert done.stderr == ""
    assert done.returncode == 3
    assert "kmemwatch cannot run here: no privilege" in done.stdout
    assert "with sudo" in done.stdout


@pytest.mark.needs("root", "bcc", "BTF", "a memory controller")
def test_without_bcc_on_this_machine() -> None:
    code = "import sys; sys.modules['bcc'] = None; sys.argv = ['x', *sys.argv[1:]]"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nfrom kmemwatch.attach import load\nload.load(())"],
        cwd=TREE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "cannot import bcc" in done.stderr.splitlines()[-1]


def test_a_wrong_without_is_wrong_usage() -> None:
    done = kmemwatch("doctor", "--without", "uprobe")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "kmemwatch: --without: no attachment is called uprobe"
