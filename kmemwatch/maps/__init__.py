# SPDX-License-Identifier: GPL-2.0-only
"""BPF maps, the structs in them as bpf/ declares them, and kernel memory that is read through them on demand."""
