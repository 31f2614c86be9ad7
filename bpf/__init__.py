# SPDX-License-Identifier: GPL-2.0-only
"""The BPF programs, as C source that kmemwatch compiles when it starts."""
