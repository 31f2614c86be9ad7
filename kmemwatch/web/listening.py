# SPDX-License-Identifier: GPL-2.0-only
"""Listening sockets: made by this process, or passed by systemd."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from kmemwatch.errors import KmemwatchError, UsageError

OPTION = "--web.listen-address"
FD, UNIX = "fd://", "unix:"
_BACKLOG = 128
_UNIX_MODE = 0o660
_FIRST_FD = 3
"""SD_LISTEN_FDS_START."""

DEFAULT_ADDRESS = "127.0.0.1:10777"
"""Prometheus' list of default ports has assigned 9100 to 9999 and goes on from 10000; this one was free."""


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT``, ``[IPv6]:PORT`` or ``:PORT`` -> (host, port); host is empty for all interfaces."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    # int() alone would accept spaces, signs and underscores.
    valid = colon and port.isascii() and port.isdigit() and int(port) <= 65535 and (bracketed or ":" not in host)
    if not valid or not host.isprintable() or " " in host:
        raise UsageError(
            f"not an address to listen on: {text!r}",
            f"HOST:PORT, for example {DEFAULT_ADDRESS}; or {FD} for what systemd hands over; or {UNIX}PATH",
        )
    return (host[1:-1] if bracketed else host), int(port)


def listen_all(
    addresses: Sequence[str], environ: MutableMapping[str, str] = os.environ, pid: int | None = None
) -> list[socket.socket]:
    """A listening socket for each address, several for ``fd://``. Raises as `listen` does, and then closes all."""
    sockets: list[socket.socket] = []
    inherited: list[tuple[str, int]] | None = None
    try:
        for address in addresses:
            if address.startswith(FD):
                inherited = take_inherited(environ, pid) if inherited is None else inherited
                sockets += _named(address, inherited)
            else:
                sockets.append(listen(address))
    except BaseException:
        for one in sockets:
            one.close()
        raise
    return sockets


def listen(address: str) -> socket.socket:
    """A listening socket. Raises UsageError for text that is no address, KmemwatchError when listening fails."""
    if address.startswith(UNIX):
        return _listen_unix(address)
    host, port = parse_address(address)
    try:
        if not host:
            return _listen_everywhere(port)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, target = found[0]
        return socket.create_server(target, family=family, backlog=_BACKLOG)
    except (socket.gaierror, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not a host name"
        raise UsageError(f"cannot listen on {address}: {reason}", "is the host name right?") from exc
    except OSError as exc:
        raise _refused(address, exc) from exc


def _refused(address: str, exc: OSError) -> KmemwatchError:
    hints = {
        errno.EADDRINUSE: f"another program uses it; choose another one with {OPTION}",
        errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE, a socket the right to write its directory",
        errno.EADDRNOTAVAIL: "this host has no such address; see: ip address",
        errno.ENOENT: "make the directory first",
    }
    reason = os.strerror(exc.errno) if exc.errno else str(exc)
    return KmemwatchError(f"cannot listen on {address}: {reason}", hints.get(exc.errno or 0))


def _listen_everywhere(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=_BACKLOG)


def _listen_unix(address: str) -> socket.socket:
    path = Path(address.removeprefix(UNIX).removeprefix("//"))
    if not path.is_absolute():
        raise UsageError(f"not an address to listen on: {address!r}", f"an absolute path: {UNIX}/run/kmemwatch.sock")
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        listener.bind(str(path))
        path.chmod(_UNIX_MODE)
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        if exc.errno is None:  # the path is too long
            raise UsageError(f"cannot listen on {address}: {exc}", "choose a shorter path") from exc
        raise _refused(address, exc) from exc
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket on which no process listens any more. Anything else stays, and binding fails."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
    except ConnectionRefusedError:
        path.unlink()
    except OSError:
        pass


def remove_unix(addresses: Sequence[str]) -> None:
    """Remove the files of `unix:` addresses."""
    for address in addresses:
        if address.startswith(UNIX):
            Path(address.removeprefix(UNIX).removeprefix("//")).unlink(missing_ok=True)


def take_inherited(environ: MutableMapping[str, str], pid: int | None = None) -> list[tuple[str, int]]:
    """(name, descriptor) of each socket that systemd passes, see sd_listen_fds(3).

    They are for this process only if LISTEN_PID is its id. The variables are removed, so that no child gets them.
    """
    values = {name: environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
    if not values["LISTEN_FDS"].isdecimal() or values["LISTEN_PID"] != str(os.getpid() if pid is None else pid):
        return []
    number = int(values["LISTEN_FDS"])
    names = values["LISTEN_FDNAMES"].split(":") if values["LISTEN_FDNAMES"] else []
    names += [""] * (number - len(names))
    for fd in range(_FIRST_FD, _FIRST_FD + number):
        try:
            os.set_inheritable(fd, False)
        except OSError as exc:
            raise KmemwatchError(f"LISTEN_FDS={number}: descriptor {fd}: {os.strerror(exc.errno or 0)}") from exc
    return [(names[index], _FIRST_FD + index) for index in range(number)]


def _named(address: str, inherited: Sequence[tuple[str, int]]) -> list[socket.socket]:
    """The sockets for ``fd://``, ``fd://NAME`` or ``fd://NUMBER``."""
    wanted = address.removeprefix(FD)
    found = [fd for name, fd in inherited if wanted in ("", name, str(fd))]
    if not found:
        there = ", ".join(f"{fd}{f' ({name})' if name else ''}" for name, fd in inherited) or "none"
        raise UsageError(
            f"{OPTION}: {address}: no such socket was handed over; there are: {there}",
            "fd:// works when a systemd socket unit starts kmemwatch: systemctl start kmemwatch.socket",
        )
    return [_adopt(address, fd) for fd in found]


def _adopt(address: str, fd: int) -> socket.socket:
    try:
        found = socket.socket(fileno=os.dup(fd))
        if found.type == socket.SOCK_STREAM and found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return found
        found.close()
    except OSError as exc:
        raise KmemwatchError(f"{OPTION}: {address}: descriptor {fd}: {os.strerror(exc.errno or 0)}") from exc
    raise UsageError(
        f"{OPTION}: {address}: descriptor {fd} is not a listening stream socket", "the unit needs ListenStream="
    )


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """``http://127.0.0.1:10777``, with the port that the kernel chose; ``unix:PATH`` for a Unix socket."""
    if listener.family == socket.AF_UNIX:
        return f"{UNIX}{os.fsdecode(listener.getsockname())}"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
