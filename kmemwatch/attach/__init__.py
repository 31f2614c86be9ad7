# SPDX-License-Identifier: GPL-2.0-only
"""Decides what to attach, then compiles and attaches it in a child process, or takes what an earlier start has kept."""
