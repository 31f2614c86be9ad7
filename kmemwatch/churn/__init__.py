# SPDX-License-Identifier: GPL-2.0-only
"""Makes cgroups that die with kernel memory behind them, and says exactly what it did.

kinds -> plan (pure: what each cgroup does) -> run (gives lives to workers, counts what they did) -> report (JSON).
`worker` is a script of its own: a light process that makes plain system calls, so that nothing but what was planned is
charged to the cgroups.
"""
