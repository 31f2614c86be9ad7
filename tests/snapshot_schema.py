# SPDX-License-Identifier: GPL-2.0-only
"""kmemwatch/data/snapshot.schema.json, made from the annotations of the model: ``python -m tests.snapshot_schema``"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from kmemwatch.model import Snapshot
from kmemwatch.shape import shape_of

FILE = Path(__file__).parents[1] / "kmemwatch/data/snapshot.schema.json"
_DESCRIPTION = (
    " null means that this kernel cannot tell; it is never the same as 0. Counters may exceed 2^53: read them with"
    r" 64-bit integers. Strings are escaped: control characters and backslashes as \n, \\, \xNN or \uNNNN, bytes that"
    r" are not UTF-8 as \x80 to \xff."
)
_TIME = {
    "description": "RFC 3339 in UTC with nanoseconds.",
    "type": "string",
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9}Z$",
}
_CACHE_ID = {"type": "string", "pattern": "^[a-z2-7]{12}$"}
_VERSION = {"description": "Version of this format."}


def schema() -> dict[str, Any]:
    """The JSON Schema of a Snapshot."""
    _, parts = msgspec.json.schema_components(
        [Snapshot], schema_hook=lambda kind: {"$ref": "#/$defs/TimeNs"}, ref_template="#/$defs/{name}"
    )
    kinds = {kind.__name__: kind for kind in Struct.__subclasses__() if kind.__module__ == Snapshot.__module__}
    made = {name: _part(part, kinds[name]) for name, part in parts.items()}
    root = made.pop("Snapshot")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:kmemwatch:snapshot:1",
        **root,
        "title": "kmemwatch snapshot",
        "description": root["description"] + _DESCRIPTION,
        "$defs": {
            **made,
            "TimeNs": _TIME,
            "CacheId": {"description": "Stands for the address of a struct kmem_cache; opaque."} | _CACHE_ID,
        },
    }


def _part(part: dict[str, Any], kind: type[Struct]) -> dict[str, Any]:
    """What msgspec says of the types of a class, with what the model says of its members."""
    members = {one.key: one for one in shape_of(kind).values()}
    for key, property_ in part["properties"].items():
        property_.pop("default", None)
        about = members[key].about.help if key in members else _VERSION["description"]
        grows = " Only grows." if key.endswith("_total") else ""
        part["properties"][key] = {"description": f"{about}{grows}", **_shared(property_)}
    return {**part, "additionalProperties": False, "required": list(part["properties"])}


def _shared(hint: Any) -> Any:
    """`hint` with a reference where it has the pattern of a cache's id."""
    if hint == _CACHE_ID:
        return {"$ref": "#/$defs/CacheId"}
    if isinstance(hint, dict):
        return {key: _shared(value) for key, value in hint.items()}
    return [_shared(one) for one in hint] if isinstance(hint, list) else hint


def text() -> str:
    """The contents of the file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
