# SPDX-License-Identifier: GPL-2.0-only
"""The figures as rows and columns, and as text; pure."""
