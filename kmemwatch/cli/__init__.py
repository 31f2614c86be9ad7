# SPDX-License-Identifier: GPL-2.0-only
"""The command line: one command a file, and `main` as the one place where errors become text and exit codes."""
