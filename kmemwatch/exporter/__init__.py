# SPDX-License-Identifier: GPL-2.0-only
"""Prometheus collector and web server of `serve`.

folding      which cgroups have series of their own
series       Snapshot -> series, in a loop over the field table
collector    series -> prometheus_client's families
text         series -> text, as prometheus_client writes it, faster
exposition   what a scrape gets, made once for each snapshot and format
publisher    the thread that owns the feed
app          routes (ASGI)
landing      the page at /
server       sockets and the HTTP server
"""

from __future__ import annotations

DEFAULT_ADDRESS = "127.0.0.1:10777"
"""Prometheus' list of default ports gave away 9100 to 9999 and goes on from 10000; this one was not on it."""
