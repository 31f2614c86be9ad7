# SPDX-License-Identifier: GPL-2.0-only
"""Decides what to attach; then a child process compiles and attaches it, or attaches what an earlier start has kept."""
