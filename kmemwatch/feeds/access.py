# SPDX-License-Identifier: GPL-2.0-only
"""How to reach a web server that wants more than a URL: a CA of one's own, a user and a password."""

from __future__ import annotations

import base64
import ssl
import urllib.request
from dataclasses import dataclass
from typing import Any

from kmemwatch.errors import UsageError
from kmemwatch.feeds.files import read_bounded


@dataclass(frozen=True, slots=True)
class Access:
    """Of one server; without any of it, it is asked as anybody would."""

    ca_file: str | None = None
    """Certificates, in PEM, to trust in place of the system's."""
    user: str | None = None
    password: str | None = None

    def headers(self) -> dict[str, str]:
        """What every request has to say."""
        if self.user is None:
            return {}
        both = f"{self.user}:{self.password or ''}".encode()
        return {"Authorization": "Basic " + base64.b64encode(both).decode()}

    def context(self) -> ssl.SSLContext:
        """For TLS. Raises UsageError when the CA file cannot be used."""
        if self.ca_file is None:
            return ssl.create_default_context()
        try:
            # What is not ASCII is a comment. An empty text would mean the system's certificates.
            pem = read_bounded(self.ca_file, _MAX_CA_BYTES).decode("ascii", "ignore")
            return ssl.create_default_context(cadata=pem or " ")
        except (OSError, ssl.SSLError) as exc:
            what = exc.strerror if not isinstance(exc, ssl.SSLError) and exc.strerror else "no certificates in it"
            raise UsageError(
                f"{self.ca_file}: cannot use it as CA file: {what}", "a file with PEM certificates"
            ) from exc


ANYBODY = Access()
_MAX_CA_BYTES = 1 << 24
_MAX_PASSWORD_BYTES = 1 << 16


class SameServer(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but says who we are only to the server that we were told to trust."""

    def redirect_request(self, req: urllib.request.Request, *args: Any, **named: Any) -> urllib.request.Request | None:
        new = super().redirect_request(req, *args, **named)
        if new is not None and (new.type, new.host) != (req.type, req.host):
            new.remove_header("Authorization")
        return new


def read_password(path: str) -> str:
    """The first line of a file. Raises UsageError."""
    try:
        lines = read_bounded(path, _MAX_PASSWORD_BYTES).decode("utf-8").splitlines()
    except OSError as exc:
        raise UsageError(f"{path}: cannot read the password: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path}: cannot read the password: not text") from exc
    if not lines or not lines[0]:
        raise UsageError(f"{path}: there is no password in its first line")
    return lines[0]
