# SPDX-License-Identifier: GPL-2.0-only
"""The page at ``/``: for the person who opens the address in a browser. No scripts, no other files."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from kmemwatch import __version__
from kmemwatch.model import Snapshot
from kmemwatch.units import UNKNOWN, printable, rfc3339, seconds_human

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem 1rem .15rem 0; text-align: left; vertical-align: top; }
.problem { font-weight: bold; } code { overflow-wrap: anywhere; }
"""


def landing_page(snapshot: Snapshot | None, problem: str | None, links: Mapping[str, str]) -> str:
    """HTML; `links` is path -> what is there."""
    listed = "\n".join(
        f'<li><a href="{escape(to)}">{escape(to)}</a> &ndash; {escape(what)}</li>' for to, what in links.items()
    )
    state = f'<p class="problem">Not ready: {escape(printable(problem))}</p>' if problem else ""
    about = "" if snapshot is None else _about(snapshot) + _probes(snapshot)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>kmemwatch</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>kmemwatch {escape(__version__)}</h1>
<p>Which memory cgroups hold kernel memory, in which slab caches, and what pins the dead ones.</p>
{state}
<ul>
{listed}
</ul>
{about}
</body>
</html>
"""


def _about(snapshot: Snapshot) -> str:
    host, kernel = snapshot.host, snapshot.kernel
    rows = {
        "Host": host.hostname,
        "Kernel": f"{host.kernel} {host.arch}",
        "Era": kernel.era or UNKNOWN,
        "cgroup version": UNKNOWN if kernel.cgroup_version is None else str(kernel.cgroup_version),
        "Attached for": seconds_human(snapshot.duration_s),
        "Snapshot": rfc3339(snapshot.taken_at_ns, digits=0) or UNKNOWN,
        "Lost events": UNKNOWN if snapshot.lost.total is None else str(snapshot.lost.total),
    }
    return _table([[f"<th>{escape(name)}</th>", _cell(text)] for name, text in rows.items()])


def _probes(snapshot: Snapshot) -> str:
    head = ["<th>Signal</th>", "<th>Status</th>", "<th>Attachment</th>", "<th>Why</th>"]
    rows = [[_cell(p.signal), _cell(p.status), _cell(p.attachment or ""), _cell(p.why or "")] for p in snapshot.probes]
    return "<h2>Probes</h2>\n" + _table([head, *rows])


def _cell(text: str) -> str:
    return f"<td>{escape(printable(text))}</td>"


def _table(rows: list[list[str]]) -> str:
    return "<table>\n" + "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows) + "\n</table>"
