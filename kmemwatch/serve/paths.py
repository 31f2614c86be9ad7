# SPDX-License-Identifier: GPL-2.0-only
"""The paths of the daemon's pages."""

from __future__ import annotations

from kmemwatch.errors import UsageError

SNAPSHOT_PATH = "/api/v1/snapshot"
HEALTHY_PATH = "/-/healthy"
READY_PATH = "/-/ready"
LANDING_PATH = "/"


def check_telemetry_path(path: str) -> None:
    """Raise UsageError unless the metrics can have this path."""
    if path in (SNAPSHOT_PATH, HEALTHY_PATH, READY_PATH):
        raise UsageError(f"--web.telemetry-path: {path} is another page", "for example /metrics")
    if not path.startswith("/") or not path.isprintable() or set(path) & set("?#% \\"):
        raise UsageError(f"--web.telemetry-path: not a path: {path!r}", "for example /metrics")
