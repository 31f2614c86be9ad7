# SPDX-License-Identifier: GPL-2.0-only
"""Views as text: for pipes, files and dumb terminals; pure, all figures come from `kmemwatch.fields`.

cells    text that fits a number of terminal cells
select   which rows in which order
table    plain tables, header and totals
files    CSV and NDJSON rows
lines    events, one line each
"""
