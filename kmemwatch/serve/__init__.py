# SPDX-License-Identifier: GPL-2.0-only
"""The daemon: one process reads the kernel, another serves HTTP; see docs/adr/0014-two-processes.md.

publisher     takes snapshots from the feed, in the reading process
http_process  the reading process's end of the other one
messages      what the two send each other
http_service  the process that serves HTTP
app           its pages
paths         their paths
memory        settings of the allocator, for both
"""
