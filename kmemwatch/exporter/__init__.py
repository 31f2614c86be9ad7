# SPDX-License-Identifier: GPL-2.0-only
"""Prometheus collector and web server of `serve`.

Snapshot -> text
selection     which cgroups and caches have series at all
exclusion     the snapshot without the others
kubernetes    labels of pods and containers
folding       which cgroups have series of their own
series        Snapshot -> series, in a loop over the field table
collector     series -> prometheus_client's families
text          series -> text, as prometheus_client writes it, faster
own           metrics of the exporter itself
exposition    what a scrape gets, made once for each snapshot and format

The process that reads the kernel (cli.serve)
publisher     the thread that owns the feed
reader        what this process costs
privileges    giving them up
sandbox       system calls that are not needed any more
listening     sockets
webfiles      --web.config.file and the files that it names
webconfig     its format; websection, tlsnames: parts of it; webmodel: the result
webchange     whether another one protects less
http_process  the other process, from here

The process that serves HTTP (worker)
wire          what the first tells the second
frames        the latest snapshot
app           routes (ASGI)
paths         where they are
landing       the page at /
front         rate limit, passwords, headers (ASGI)
tls           certificates
protocol      deadlines, limit of connections, names of clients
server        the HTTP server
heap          less memory
"""

from __future__ import annotations

DEFAULT_ADDRESS = "127.0.0.1:10777"
"""Prometheus' list of default ports gave away 9100 to 9999 and goes on from 10000; this one was not on it."""
