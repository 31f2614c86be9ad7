# SPDX-License-Identifier: GPL-2.0-only
"""Grafana dashboards, as code; `python -m dashboards` writes the JSON files beside it."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards import comparison, host, overview

HERE = Path(__file__).parent
DASHBOARDS = {"overview": overview.build, "host": host.build, "patched-against-unpatched": comparison.build}
"""Name of the file -> the function that builds its dashboard."""


def rendered(name: str) -> str:
    """The JSON of one dashboard, as it is in its file."""
    board = DASHBOARDS[name]().build()
    for number, panel in enumerate(board.panels or (), start=1):
        # Without ids of ours, Grafana chooses new ones at each import, and links to panels break.
        panel.id_val = number
    return json.dumps(json.loads(json.dumps(board, cls=JSONEncoder)), indent=2, sort_keys=True) + "\n"


def path_of(name: str) -> Path:
    """The file that Grafana imports."""
    return HERE / f"{name}.json"
