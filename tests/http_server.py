# SPDX-License-Identifier: GPL-2.0-only
"""A server of the test's own, on a free port of 127.0.0.1, that answers as the test wants."""

from __future__ import annotations

import http.server
import threading


class QuietHandler(http.server.BaseHTTPRequestHandler):
    """Tests add do_GET() and do_POST()."""

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class OwnServer:
    """Answers each request in a thread of its own, until it is stopped."""

    def __init__(self, handler: type[QuietHandler]) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.address}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
