# SPDX-License-Identifier: GPL-2.0-only
"""Reads the running kernel: totals, as a `Reading`, and events."""
