# SPDX-License-Identifier: GPL-2.0-only
"""The program, also as `python -m kmemwatch`: what can go wrong before there is anything that could report it."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Console script."""
    try:
        from kmemwatch.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, MemoryError, ImportError) as error:
        print(f"kmemwatch: cannot start: {str(error) or type(error).__name__}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    run()


if __name__ == "__main__":
    main()
