# SPDX-License-Identifier: GPL-2.0-only
"""Makes cgroups that die with kernel memory behind them, and reports exactly what it did.

`lives` plans what each cgroup does (pure), `runner` gives lives to `workers` and counts their answers in `results`.
`cgroup_worker` runs in a process of its own: it is small and makes plain system calls, so that the kernel charges
nothing but the planned objects to the cgroups.
"""
