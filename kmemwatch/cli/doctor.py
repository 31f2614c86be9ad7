# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch doctor`: what works on this kernel, what does not, why, and what to change."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import click

from kmemwatch import __version__
from kmemwatch.attach import plan as plan_module
from kmemwatch.attach.handover import Child, ProbeResult
from kmemwatch.attach.plan import Plan
from kmemwatch.cli.options import without_option
from kmemwatch.errors import KmemwatchError, ShortageError, UnsupportedError, UsageError
from kmemwatch.kernel import facts as facts_module
from kmemwatch.kernel.facts import Facts
from kmemwatch.model import ABSENT, FALLBACK, MISSING, Probe
from kmemwatch.units import one_line

WIDTH = 80

GIVES = {
    "pins": "sizes of all cgroups, and what pins dying ones",
    "alloc": "objects allocated, per cache and cgroup",
    "alloc-bulk": "objects allocated many at a time, as by the network",
    "free": "objects freed, and bytes that are still live",
    "free-bulk": "objects freed many at a time, as by kfree_rcu()",
    "charge": "kernel memory charged and uncharged, per cgroup",
    "lifecycle": "when cgroups go online, go offline, are released",
    "caches": "when child caches are created and destroyed",
    "ids": "when a kmemcg_id is given, freed, reused",
    "recharge": "slabs that move from one cgroup to another",
    "slabs": "slabs that child caches hold of dying cgroups",
}
"""Signal -> what kmemwatch shows only with it."""

_STATUS = {MISSING: "missing", ABSENT: "absent"}


@click.command(short_help="What works here.")
@click.option("--output", metavar="FORMAT", default="text", type=click.Choice(("text", "json")),
              help="text (default) or json.")  # fmt: skip
@click.option("--addresses", is_flag=True, help="Also show kernel addresses; for root only.")
@without_option
def command(output: str, addresses: bool, without: tuple[str, ...]) -> int:
    """Look at this host, attach every probe for a moment, and say what works and what does not.

    Exit code 0: kmemwatch runs here, and the text lists what it does not see. 3: it cannot run here. 1: doctor could
    not find out, for lack of memory for example.
    """
    if addresses and os.geteuid() != 0:
        raise UsageError("--addresses: kernel addresses are shown to root only", "sudo kmemwatch doctor --addresses")
    found = examine(without)
    sys.stdout.write((to_json(found, addresses) if output == "json" else to_text(found, addresses)) + "\n")
    return 0 if found.error is None else found.error.exit_code


def examine(without: tuple[str, ...] = ()) -> Diagnosis:
    """Gather facts, plan, and attach for a moment if allowed. Raises UsageError for a wrong `without`."""
    found = facts_module.gather()
    has_bcc = _has_bcc()
    try:
        chosen = plan_module.plan(found, without)
    except (UnsupportedError, ShortageError) as error:
        return Diagnosis(found, has_bcc, _plan_for_root(found, without), error)
    try:
        handed = Child(without).wait()
    except KmemwatchError as error:
        return Diagnosis(found, has_bcc, chosen, error)
    handed.close()
    manifest = handed.manifest
    return Diagnosis(
        found,  # not the facts of a kept start: that may have been made in another cgroup
        has_bcc,
        chosen,
        probes=tuple(_probe(result) for result in manifest.probes),
        learn_error=manifest.learn_error,
        statistics_known=manifest.stats_index is not None,
        accounting_known=manifest.slab_account is not None,
    )


def _has_bcc() -> bool | None:
    """None: could not be looked up."""
    try:
        return importlib.util.find_spec("bcc") is not None
    except OSError:
        return None


def _plan_for_root(found: Facts, without: tuple[str, ...]) -> Plan | None:
    """What root could attach; None when more than privileges is missing."""
    try:
        return plan_module.plan(replace(found, privileged=True, host_namespace=True), without)
    except (UnsupportedError, ShortageError):
        return None


def _probe(result: ProbeResult) -> Probe:
    return Probe(result.signal, result.attachment, result.status, result.why)


def to_json(found: Diagnosis, addresses: bool = False) -> str:
    """Facts (as `Facts.from_json` reads them), plan, and what could be attached; null: not tried.

    Without `addresses`, null stands for the address of each symbol.
    """
    error = found.error
    document: dict[str, Any] = {
        "works": error is None,
        "error": None if error is None else {"message": str(error), "hint": error.hint},
        "bcc": found.has_bcc,
        "facts": json.loads(found.facts.to_json(addresses)),
        "plan": None if found.plan is None else [_signal_json(signal) for signal in found.plan.signals],
        "probes": None,
        "learn_error": found.learn_error,
        "statistics_known": found.statistics_known,
        "accounting_known": found.accounting_known,
    }
    if found.probes is not None:
        document["probes"] = [
            {"signal": probe.signal, "attachment": probe.attachment, "status": probe.status, "why": probe.why}
            for probe in found.probes
        ]
    return json.dumps(document, indent=1)


def _signal_json(signal: plan_module.Signal) -> dict[str, Any]:
    candidates = [{"attachment": option.name, "limits": option.limits} for option in signal.candidates]
    return {"signal": signal.name, "candidates": candidates, "skipped": list(signal.skipped)}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    facts: Facts
    has_bcc: bool | None
    plan: Plan | None
    """None when nothing could ever be attached here. Without privileges: what root could attach."""
    error: KmemwatchError | None = None
    """Why kmemwatch cannot run here; None when it can."""
    probes: tuple[Probe, ...] | None = None
    """What was attached for a moment; None when that was not tried, or failed for all."""
    learn_error: str | None = None
    """Why caches or struct pages were not found."""
    statistics_known: bool | None = None
    """The order of memory.stat's figures inside the kernel; None: not tried, as below."""
    accounting_known: bool | None = None
    """SLAB_ACCOUNT: which caches are always charged."""


def to_text(found: Diagnosis, addresses: bool = False) -> str:
    """80 columns wide, without a newline at the end; kernel addresses only with `addresses`."""
    facts = found.facts
    where = f"cgroup v{facts.hierarchy['version']}" if facts.hierarchy else "no memory cgroups"
    lines = [f"kmemwatch {__version__} on Linux {facts.release}, {facts.arch}, {where}", "", *_verdict(found)]
    lines += ["", "Signals", *_all_signal_lines(found), "", "Host", *_host(found)]
    advice = list(_advice(found))
    if advice:
        lines += ["", "What to change"]
        for text in advice:
            lines += _wrapped(text, "  - ", "    ")
    if addresses:
        known = found.facts.symbols or {}
        lines += ["", "Kernel addresses", *(f"  {known[name]:#018x} {name}" for name in sorted(known))]
    return "\n".join(map(one_line, lines))


def _verdict(found: Diagnosis) -> list[str]:
    if isinstance(found.error, UnsupportedError):
        return _wrapped(f"kmemwatch cannot run here: {found.error}")
    if found.error is not None:  # such as no memory: that says nothing about this kernel
        return _wrapped(f"What works here could not be checked: {found.error}")
    probes = found.probes or ()
    missing = [probe.signal for probe in probes if probe.status == MISSING]
    partly = [probe.signal for probe in probes if probe.attachment and probe.why]
    if not missing and not partly:
        return ["kmemwatch works here, and every signal is complete."]
    parts = [f"missing: {', '.join(missing)}" if missing else "", f"in part: {', '.join(partly)}" if partly else ""]
    return _wrapped(f"kmemwatch works here; {'; '.join(part for part in parts if part)}.")


def _all_signal_lines(found: Diagnosis) -> Iterator[str]:
    if found.probes is not None:
        for probe in found.probes:
            status = _STATUS.get(probe.status, "partly" if probe.why else "works")
            tried = "not the best way: " if probe.status == FALLBACK else ""
            reasons = [f"{tried}{probe.why}"] if probe.why and probe.attachment else (probe.why or "").split("; ")
            yield from _signal_lines(status, probe.signal, probe.attachment, [reason for reason in reasons if reason])
    elif found.plan is not None:
        for signal in found.plan.signals:
            best = signal.candidates[0] if signal.candidates else None
            reasons = list(signal.skipped) if best is None else [best.limits] if best.limits else []
            status = "planned" if best else "missing" if signal.applies else "absent"
            yield from _signal_lines(status, signal.name, best.name if best else None, reasons)
    else:
        status = "missing" if isinstance(found.error, UnsupportedError) else "unknown"
        for name in GIVES:
            yield from _signal_lines(status, name, None, [])


def _signal_lines(status: str, name: str, attachment: str | None, reasons: list[str]) -> Iterator[str]:
    indent = " " * 23
    yield f"  {status:<8} {name:<11} {GIVES.get(name, '')}".rstrip()
    if attachment:
        # Spaces let textwrap break lines between hooks.
        for line in _wrapped(attachment.replace("+", "+ ").replace(",", ", "), indent, indent):
            yield line.replace("+ ", "+")
    for reason in reasons:
        yield from _wrapped(reason, f"{indent}- ", f"{indent}  ")


def _host(found: Diagnosis) -> Iterator[str]:
    facts = found.facts
    names = facts.symbols or {}
    hidden = bool(names) and not any(names.values())
    mount = facts.hierarchy.get("mount") if facts.hierarchy else None
    part = facts.hierarchy.get("part_at") if facts.hierarchy else None
    where = f"mounted at {mount}" if mount else f"only a part is mounted, at {part}" if part else "not mounted here"
    privileges = "CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN"
    if facts.host_namespace is False:
        privileges = "this is a user namespace; its root is not the host's"
    names_cache = _tracepoint(facts, "kmem_cache_alloc", "kmem_cache *")
    rows = (
        ("privileges", facts.privileged, privileges),
        ("bcc", found.has_bcc, "compiles the programs (package python3-bpfcc)"),
        ("BTF", facts.btf, facts.btf_why or "the kernel's description of its types (CONFIG_DEBUG_INFO_BTF)"),
        ("memory cgroups", _there(facts, facts.hierarchy), facts.hierarchy_why or where),
        ("kprobes", facts.kprobes, "any function can be a hook (CONFIG_KPROBE_EVENTS)"),
        ("fentry", facts.fentry, facts.fentry_why or "functions as hooks, cheaper than kprobes"),
        ("memcg events", _tracepoint(facts, "mod_memcg_state"), "tracepoint mod_memcg_state (Linux 6.13)"),
        ("cache events", names_cache, "tracepoints name the cache (Linux 6.1)"),
        ("symbols", _there(facts, facts.symbols), "the kernel hides addresses from us" if hidden else "/proc/kallsyms"),
        ("tracefs", _there(facts, facts.tracefs), facts.tracefs or facts.tracefs_why or "not found"),
    )
    for name, value, text in rows:
        word = {True: "yes", False: "no", None: "?"}[value]
        yield from _wrapped(text, f"  {word:<4} {name:<15} ", " " * 23)
    yield f"  {'':<4} {'lockdown':<15} {facts.lockdown or '? (securityfs is not mounted)'}"


def _there(facts: Facts, value: object) -> bool | None:
    """None where it may exist, but could not be looked for."""
    if value is not None:
        return True
    return False if facts.shortage is None and facts.unmounted is None else None


def _tracepoint(facts: Facts, name: str, third: str | None = None) -> bool | None:
    """Whether the kernel has the tracepoint, with such a third argument; None without BTF."""
    if not facts.btf:
        return None
    args = facts.tracepoint_args.get(name)
    return args is not None and (third is None or args[2:3] == (third,))


def _advice(found: Diagnosis) -> Iterator[str]:
    facts = found.facts
    if found.error is not None and found.error.hint:
        sent_here = "kmemwatch doctor" in found.error.hint
        yield "report this: kmemwatch doctor --output json has all of it" if sent_here else found.error.hint
    if found.has_bcc is False and not (found.error and "bcc" in (found.error.hint or "")):
        yield "apt-get install python3-bpfcc, and run kmemwatch with the system's python3 (make setup)"
    if facts.privileged is False and facts.host_namespace is not False:
        yield "fentry and the addresses of symbols could not be checked: run kmemwatch doctor with sudo"
    missing = [probe.signal for probe in found.probes or () if probe.status == MISSING]
    if missing and facts.kprobes is False and not facts.fentry:
        yield (
            f"for {', '.join(missing)}: a kernel with CONFIG_KPROBE_EVENTS=y, or one that accepts fentry programs "
            "(neither lockdown nor hardening against it)"
        )
    if facts.btf and facts.gfp_account is None and facts.tracefs is None:
        yield (
            "mount -t tracefs tracefs /sys/kernel/tracing: this kernel shows only there the value of __GFP_ACCOUNT, "
            "which says what objects are charged"
        )
    names = facts.symbols or {}
    if facts.privileged and facts.symbols is not None and not any(names.values()):
        yield "sysctl kernel.kptr_restrict=1: addresses in /proc/kallsyms are hidden even from root"
    if found.statistics_known is False:
        yield "slab bytes and pins are unknown (?): the table mem_cgroup_stats_index was not found in this kernel"
    if found.accounting_known is False:
        yield "live bytes are unknown (?): the value of SLAB_ACCOUNT was not found in this kernel"
    if found.learn_error:
        yield f"caches are shown without a name, or not at all: {found.learn_error}"
    if facts.hierarchy is not None and facts.hierarchy.get("mount") is None:
        yield _what_a_part_costs(facts, facts.hierarchy.get("part_at"))


def _what_a_part_costs(facts: Facts, part: object) -> str:
    what = f"what is mounted at {part} is a part of the memory hierarchy, and its root is nowhere here"
    if part is None:
        what = "the memory hierarchy is not mounted here"
    own = f"{facts.own_cgroup} (as this cgroup namespace calls it)" if facts.own_cgroup else "the cgroup it runs in"
    return (
        f"{what}: kmemwatch's own memory, some 13 MB, is charged to {own}, and shown there. Run it on the host, or "
        "mount the whole hierarchy; paths are those of the host all the same"
    )


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )
