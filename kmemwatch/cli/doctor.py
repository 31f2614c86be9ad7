# SPDX-License-Identifier: GPL-2.0-only
"""`kmemwatch doctor`: what this kernel can tell, what not, why, and what to change."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import replace
from typing import Any

import click

from kmemwatch.attach import plan as plan_module
from kmemwatch.attach.handover import Child, ProbeResult
from kmemwatch.attach.plan import Plan
from kmemwatch.cli.diagnosis import Diagnosis, report
from kmemwatch.cli.options import without_option
from kmemwatch.errors import KmemwatchError, ShortageError, UnsupportedError, UsageError
from kmemwatch.kernel import facts as facts_module
from kmemwatch.kernel.facts import Facts
from kmemwatch.model import Probe


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
    sys.stdout.write((to_json(found, addresses) if output == "json" else report(found, addresses)) + "\n")
    return 0 if found.error is None else found.error.exit_code


def examine(without: tuple[str, ...] = ()) -> Diagnosis:
    """Gather facts, plan, and where that is allowed attach for a moment. Raises UsageError for a wrong `without`."""
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
        found,  # not those of a start that was kept, which may have been made in another cgroup
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
    """What would be attached if only privileges are missing; None when something else is in the way as well."""
    try:
        return plan_module.plan(replace(found, privileged=True, host_namespace=True), without)
    except (UnsupportedError, ShortageError):
        return None


def _probe(result: ProbeResult) -> Probe:
    return Probe(result.signal, result.attachment, result.status, result.why)


def to_json(found: Diagnosis, addresses: bool = False) -> str:
    """Facts (as `Facts.from_json` reads them), plan, and the outcome of the trial; null where it was not tried, and in
    place of the address of each symbol unless `addresses`."""
    error = found.error
    document: dict[str, Any] = {
        "works": error is None,
        "error": None if error is None else {"message": str(error), "hint": error.hint},
        "bcc": found.has_bcc,
        "facts": json.loads(found.facts.to_json(addresses)),
        "plan": None if found.plan is None else [_signal(signal) for signal in found.plan.signals],
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


def _signal(signal: plan_module.Signal) -> dict[str, Any]:
    candidates = [{"attachment": option.name, "limits": option.limits} for option in signal.candidates]
    return {"signal": signal.name, "candidates": candidates, "skipped": list(signal.skipped)}
