# SPDX-License-Identifier: GPL-2.0-only
"""`top` on a terminal.

    poller    a thread that reads the feed; knows nothing of Textual, so it runs while that is still imported
    topapp    the screen: who gets which frame, and what each key does
    status    the lines above and below the table
    rowtable  the table; formats only the rows that are visible
    details   everything about one row
    help      keys, columns, and what the signs mean

Widgets get frozen frames and never touch the feed.
"""
