# SPDX-License-Identifier: GPL-2.0-only
"""Compares two sides (recordings, daemons, Prometheus) by the claims of the patch set's cover letter.

Each kind of side becomes the same `Side` (`measure`, `prometheus`): samples of `figures`, and the delays from removal
to release. `claims` judges one side, `comparison` puts the two together, `output` and `html` write what it found.
"""

from __future__ import annotations
