# SPDX-License-Identifier: GPL-2.0-only
"""Where views get snapshots from: the live kernel, a recording, or a daemon elsewhere."""
