# SPDX-License-Identifier: GPL-2.0-only
"""Settings of the tools that the unit tests use."""

from __future__ import annotations

from hypothesis import settings

# No deadline: how long one example takes says more about what else the machine does than about our code.
settings.register_profile("kmemwatch", deadline=None)
settings.load_profile("kmemwatch")
