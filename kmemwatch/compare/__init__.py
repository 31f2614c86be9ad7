# SPDX-License-Identifier: GPL-2.0-only
"""Two sides (recordings, daemons, Prometheus) -> what each is, the claims of the cover letter, a table, a report.

Every kind of side becomes the same `Side`: samples of figures that are named as the exported metrics, and the delays
from removal to release. Claims are pure functions of a Side; renderers only print what they found. Only `html` knows
jinja2, and loads it when it is used.
"""

from __future__ import annotations
