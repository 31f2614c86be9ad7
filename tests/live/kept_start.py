# SPDX-License-Identifier: GPL-2.0-only
"""The child, with a directory of the test's own: KMEMWATCH_TEST_KEPT names it.

With KMEMWATCH_TEST_WARM, an attempt to do what only a cold start needs is an error.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kmemwatch.attach import child as attach

if __name__ == "__main__":
    if "KMEMWATCH_TEST_WARM" in os.environ:
        sys.modules["kmemwatch.attach.load"] = None  # type: ignore[assignment]
        sys.modules["bcc"] = None  # type: ignore[assignment]
    os._exit(attach.main(sys.argv, Path(os.environ["KMEMWATCH_TEST_KEPT"])))
