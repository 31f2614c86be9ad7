# SPDX-License-Identifier: GPL-2.0-only
r"""Snapshot and Event <-> JSON, schema 1; the one wire format of files, the daemon and the command line.

Rules that hold for every value:

- A key that this kernel cannot fill is ``null``, never left out and never 0.
- Times are RFC 3339 in UTC with nanoseconds.
- No kernel addresses: caches have ids, see `kmemwatch.cacheids`. What older releases wrote has addresses; reading puts
  ids in their place, which hold in this process only.
- Every string is in the escaped form of `units.printable` (``\x80`` for a byte that is not UTF-8, ``\n``,
  ``\\``), because JSON cannot hold such bytes; reading undoes it, so names survive byte for byte.
- Reading ignores keys it does not know, so that a newer release may add some within schema 1.

``kmemwatch/data/snapshot.schema.json`` describes the same format for others.
"""

from __future__ import annotations

from kmemwatch.codec.decode import event_from_dict, host_from_dict, parse_json, snapshot_from_dict, snapshot_from_json
from kmemwatch.codec.encode import dump_json, event_to_dict, snapshot_to_dict, snapshot_to_json

__all__ = [
    "dump_json",
    "event_from_dict",
    "event_to_dict",
    "host_from_dict",
    "parse_json",
    "snapshot_from_dict",
    "snapshot_from_json",
    "snapshot_to_dict",
    "snapshot_to_json",
]
