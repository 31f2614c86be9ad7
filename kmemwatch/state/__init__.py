# SPDX-License-Identifier: GPL-2.0-only
"""Folds events and readings into snapshots; the only mutable data, bounded."""
