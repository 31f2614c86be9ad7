# SPDX-License-Identifier: GPL-2.0-only
"""Which memory cgroups hold kernel memory, in which slab caches, and what pins dying ones."""

__version__ = "0.1.0"
