# SPDX-License-Identifier: GPL-2.0-only
"""The maps of bpf/latency.bpf.c -> `model.Latency`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kmemwatch.maps import decode
from kmemwatch.maps.decode import LATENCY_ONE_IN
from kmemwatch.model import Latency, LatencyHistogram


class TimedCalls(NamedTuple):
    """Of one function on one CPU, see ``struct timed_call``."""

    calls: int
    dropped: int
    in_flight: bool
    """A call that is being timed has not returned yet."""


def timed_calls(raw: bytes) -> list[list[TimedCalls]]:
    """The only value of the map ``timed``, of all CPUs -> CPU -> function -> its calls."""
    rows = [TimedCalls(row[0], row[1], bool(row[2])) for row in decode.TIMED_CALL.iter_unpack(raw)]
    return [rows[at : at + decode.TIMED] for at in range(0, len(rows), decode.TIMED)]


def latency(timed: bytes, sums: Sequence[Sequence[int]], has_check: bool) -> Latency:
    """`timed`: as for `timed_calls`; `sums`: rows of the map ``latency`` as numbers, all CPUs added up."""
    counted: dict[str, list[int]] = {"allocation": [0, 0], **({"recharge_check": [0, 0]} if has_check else {})}
    for functions in timed_calls(timed):
        for place, function in enumerate(functions):
            what = "recharge_check" if place == decode.TIMED_CHECK else "allocation"
            if what in counted:
                counted[what][0] += function.calls
                counted[what][1] += function.dropped
    kinds = decode.LATENCY_KINDS if has_check else decode.LATENCY_KINDS[:1]
    return Latency(
        one_in=LATENCY_ONE_IN,
        calls_total=_column(counted, 0),
        dropped_total=_column(counted, 1),
        histograms=tuple(
            LatencyHistogram(kind, row[0], row[1], tuple(row[2:])) for kind, row in zip(kinds, sums, strict=False)
        ),
    )


def _column(rows: Mapping[str, Sequence[int]], place: int) -> dict[str, int]:
    return {name: row[place] for name, row in rows.items()}
