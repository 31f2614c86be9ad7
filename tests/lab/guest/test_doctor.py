# SPDX-License-Identifier: GPL-2.0-only
"""What `doctor` says of this kernel; the host compares it with what is known of it (tests/lab/test_results.py)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.daemon import KMEMWATCH
from tests.lab.boot import SHARED
from tests.lab.results import DOCTOR


def test_doctor_is_content() -> None:
    ended = subprocess.run([*KMEMWATCH, "doctor", "--output", "json"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    found = json.loads(ended.stdout)
    assert found["works"] is True
    assert (found["learn_error"], found["statistics_known"], found["accounting_known"]) == (None, True, True)
    (Path(SHARED) / DOCTOR).write_text(ended.stdout)
