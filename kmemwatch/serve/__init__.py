# SPDX-License-Identifier: GPL-2.0-only
"""The daemon: one process reads the kernel, another serves HTTP; see docs/adr/0014-two-processes.md."""
