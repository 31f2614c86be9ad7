# SPDX-License-Identifier: GPL-2.0-only
"""What the running kernel says now: totals, as a Reading, and events."""
