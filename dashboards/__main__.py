# SPDX-License-Identifier: GPL-2.0-only
"""Write every dashboard; say which files changed."""

from __future__ import annotations

import sys

from dashboards import DASHBOARDS, path_of, rendered


def main() -> None:
    """`make dashboards`."""
    for name in DASHBOARDS:
        path, text = path_of(name), rendered(name)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            sys.stdout.write(f"wrote dashboards/{path.name}\n")


if __name__ == "__main__":
    main()
