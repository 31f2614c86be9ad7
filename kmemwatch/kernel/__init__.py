# SPDX-License-Identifier: GPL-2.0-only
"""What this kernel is and can do: facts, BTF, cgroup file systems; and the system calls of BPF."""
