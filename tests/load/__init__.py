# SPDX-License-Identifier: GPL-2.0-only
"""Load and faults: what `serve` does when many ask at once, when somebody means harm, when things end suddenly."""
