# SPDX-License-Identifier: GPL-2.0-only
"""What this kernel is and can do: BTF, symbols, facts, the probe plan, cgroup files. Loads nothing."""
