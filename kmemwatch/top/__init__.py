# SPDX-License-Identifier: GPL-2.0-only
"""`top` on a terminal.

    poller    a thread that reads the feed; it runs while Textual is still being imported, and knows nothing of it
    topapp    the screen: what each widget shows, and what each key does
    status    the lines above and below the table
    rowtable  the table; formats only the rows that are visible
    details   everything about one row
    help      keys, columns, signs

Widgets get frozen frames and never touch the feed.
"""
