# SPDX-License-Identifier: GPL-2.0-only
"""The BPF programs in C, shipped as package data; see README.md in this directory."""
