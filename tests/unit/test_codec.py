# SPDX-License-Identifier: GPL-2.0-only
"""JSON, schema 1: nothing is lost on the way, and what is malformed is named."""

from __future__ import annotations

import copy
import json
import re
import tracemalloc
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from kmemwatch import model
from kmemwatch.codec import from_builtins, from_json, parse_json, snapshot_to_json, to_json
from kmemwatch.codec.old import is_of_this_release
from kmemwatch.errors import UsageError
from kmemwatch.model import Event, Snapshot
from kmemwatch.units import parse_rfc3339, printable, rfc3339, unprintable
from tests import snapshot_schema
from tests.unit import fakes, strategies

SCHEMA = json.loads(snapshot_schema.FILE.read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SAMPLES = [fakes.sample(), fakes.unknown(), fakes.empty(), fakes.lossy(), fakes.patched(), fakes.odd()]

any_text = st.text(st.characters(exclude_categories=[]))


@given(strategies.snapshots)
@settings(max_examples=200)
def test_snapshot_survives_json(snapshot: model.Snapshot) -> None:
    text = snapshot_to_json(snapshot)
    assert is_of_this_release(text, Snapshot)
    assert from_json(Snapshot, text) == snapshot == from_json(Snapshot, snapshot_to_json(snapshot, indent=2))
    assert b"\n" not in text
    assert from_builtins(Snapshot, json.loads(text)) == snapshot


@given(strategies.events)
def test_event_survives_json(event: model.Event) -> None:
    assert from_json(Event, to_json(event)) == event
    assert from_builtins(Event, fakes.as_dict(event)) == event


@pytest.mark.parametrize("snapshot", SAMPLES)
def test_samples_are_valid_and_survive(snapshot: model.Snapshot) -> None:
    document = fakes.as_dict(snapshot)
    VALIDATOR.validate(document)
    assert from_builtins(Snapshot, document) == snapshot


@given(strategies.snapshots)
@settings(max_examples=60)
def test_every_snapshot_follows_the_schema(snapshot: model.Snapshot) -> None:
    VALIDATOR.validate(fakes.as_dict(snapshot))


@pytest.mark.parametrize(
    ("field", "old"),
    [
        ("references", 2**63 + 1),
        ("references", -1),
        ("memory_bytes", -4096),
        ("kernel_bytes", -8),
        ("slab_bytes", 2**62),
        ("pins", {"file": -69_632, "shmem": 8 << 20}),
    ],
)
def test_what_older_releases_took_for_a_number_is_unknown_when_read(field: str, old: object) -> None:
    document = fakes.as_dict(fakes.sample())
    document["cgroups"][0][field] = old
    assert getattr(from_builtins(Snapshot, document).cgroups[0], field) is None


def test_pages_of_an_older_recording_are_no_more_than_the_memory_that_they_are_part_of() -> None:
    """As the recording that ships with kmemwatch has it: 96.0K of memory, of which 3.2M anonymous."""
    document = fakes.as_dict(fakes.sample())
    cgroup = document["cgroups"][0]
    told = []
    for pins in (
        {"anon": 3 << 20, "swap": 4096},
        {"anon": 90 << 10, "file": 8 << 10},
        {"anon": 96 << 10, "swap": 1 << 30},
    ):
        cgroup["memory_bytes"], cgroup["pins"] = 96 << 10, pins
        told.append(from_builtins(Snapshot, document).cgroups[0].pins)
    assert told == [None, None, {"anon": 96 << 10, "swap": 1 << 30}]


@pytest.mark.parametrize(("field", "wrong"), [("pins", -1), ("pins", 2**63 + 1), ("memory_bytes", {"file": -1})])
def test_what_no_release_wrote_is_refused(field: str, wrong: object) -> None:
    document = fakes.as_dict(fakes.sample())
    document["cgroups"][0][field] = wrong
    with pytest.raises(UsageError, match=rf"cgroups\[0\]\.{field}: expected"):
        from_builtins(Snapshot, document)


@pytest.mark.parametrize("escape", [r"\x41", r"\u0041", r"\U0001f600", r"\udc80", r"\x0a"])
def test_names_that_another_program_escaped_are_the_same_names(escape: str) -> None:
    document = fakes.as_dict(fakes.sample())
    document["host"]["hostname"] = escape
    found = from_json(Snapshot, json.dumps(document).encode()).host.hostname
    assert found == printable(unprintable(escape)) != escape


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("caches[0]", ["\ud800"]),
        ("release_delays_s[0]", ["\ud800"]),
        ("lost.reasons.ringbuf_full", {"reasons": {"ringbuf_full": "\ud800"}}),
    ],
)
def test_half_a_surrogate_pair_where_no_text_belongs_is_named(place: str, wrong: object) -> None:
    document = fakes.as_dict(fakes.sample())
    document[re.split(r"[.\[]", place)[0]] = wrong
    if isinstance(wrong, dict):
        wrong.update(events_total=0, map_full_total=0, unresolved_total=0)
    with pytest.raises(UsageError, match=re.escape(place) + ": expected"):
        from_json(Snapshot, json.dumps(document).encode())


def test_a_key_of_a_newer_release_may_hold_half_a_surrogate_pair() -> None:
    document = fakes.as_dict(fakes.sample())
    document["caches"][0]["\ud800"] = document["later"] = {"\ud800": ["\ud800"]}
    assert from_json(Snapshot, json.dumps(document).encode()) == fakes.sample()


def test_deep_nesting_is_one_line() -> None:
    text = snapshot_to_json(fakes.sample()).replace(b'"schema":1', b'"schema":1,"later":' + b"[" * 5000 + b"]" * 5000)
    with pytest.raises(UsageError, match="not JSON: maximum recursion"):
        from_json(Snapshot, text)


@pytest.mark.parametrize("piece", ["\\\\", "é/", "\\x80", "\\u202e"])
def test_names_full_of_what_is_special_take_little_memory(piece: str) -> None:
    text = snapshot_to_json(replace(fakes.sample(), host=model.Host(piece * 200_000, "6.1", "x86_64", None)))
    assert is_of_this_release(text, Snapshot)  # also fills caches
    tracemalloc.start()
    is_of_this_release(text, Snapshot)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * len(text)


def test_the_schema_is_that_of_the_model() -> None:
    assert snapshot_schema.FILE.read_text() == snapshot_schema.text(), "make docs"


def test_the_schema_is_itself_valid_and_closed() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def walk(node: Any, where: str) -> None:
        if isinstance(node, dict):
            if "properties" in node:
                assert node["additionalProperties"] is False, where
                assert sorted(node["required"]) == sorted(node["properties"]), where
                assert all("description" in item for item in node["properties"].values()), where
            for key, value in node.items():
                walk(value, f"{where}/{key}")

    walk(SCHEMA, "")


def test_no_field_of_the_model_is_forgotten() -> None:
    """The JSON of a filled snapshot has a key for every field of every row in it."""

    def check(item: Any, document: Any) -> None:
        if isinstance(item, Struct):
            for name, key in zip(item.__struct_fields__, item.__struct_encode_fields__, strict=True):
                assert key in document, f"{type(item).__name__}.{name}"
                check(getattr(item, name), document[key])
        elif isinstance(item, tuple):
            for part, part_document in zip(item, document, strict=True):
                check(part, part_document)

    for snapshot in SAMPLES:
        check(snapshot, fakes.as_dict(snapshot))
    event = model.Event(1, "online")
    check(event, fakes.as_dict(event))


def _places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a document, the first item of arrays only."""
    found = [path] if path else []
    if isinstance(document, dict):
        for key, value in document.items():
            found += _places(value, (*path, key))
    elif isinstance(document, list) and document:
        found += _places(document[0], (*path, 0))
    return found


def _named(path: tuple[Any, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


@pytest.mark.parametrize("wrong", [[{}], {"a": []}, "x\\q", True, -1.5])
def test_what_is_malformed_is_named(wrong: object) -> None:
    good = fakes.as_dict(fakes.patched())
    for path in _places(good):
        bad = copy.deepcopy(good)
        parent = bad
        for part in path[:-1]:
            parent = parent[part]
        parent[path[-1]] = wrong
        if VALIDATOR.is_valid(bad) and not isinstance(wrong, str):
            continue
        if wrong == {"a": []} and path in (("recharges",), ("ids",), ("totals",)):
            continue  # all of their keys may be missing
        with pytest.raises(UsageError) as caught:
            from_builtins(Snapshot, bad)
        assert str(caught.value).startswith(_named(path))
        assert "\n" not in str(caught.value)


def test_documents_of_the_first_release_can_still_be_read() -> None:
    document = fakes.as_dict(fakes.patched())
    for cgroup in document["cgroups"]:
        for key in [key for key in cgroup if key.startswith(("own_", "subtree_"))]:
            del cgroup[key]
        for key in ("child_slabs", "parent_id", "dying_children"):
            del cgroup[key]
    del document["totals"]["memcg_ids_in_use"]
    for key in ("lost_races_total", "totals"):
        del document["recharges"][key]
    for key in ("given_total", "freed_total", "meaning"):
        del document["ids"][key]
    for entry in document["ids"]["map"]:
        del entry["slab_bytes"]
    del document["latency"]
    read = from_builtins(Snapshot, document)
    assert (read.recharges.lost_races_total, read.recharges.totals) == (None, None)
    assert (read.ids.given_total, read.ids.freed_total, read.ids.meaning) == (None, None, None)
    assert (read.latency, read.totals.memcg_ids_in_use) == (None, None)
    assert {(cgroup.parent_id, cgroup.dying_children) for cgroup in read.cgroups} == {(None, None)}
    assert read.caches == fakes.patched().caches


def test_what_is_missing_is_named_or_unknown() -> None:
    """A key that is missing is unknown where null says so, as in documents that are older than the key."""
    good = fakes.as_dict(fakes.patched())
    for path in _places(good):
        if isinstance(path[-1], int) or path[-2:-1] in (("pins",), ("reasons",)):
            continue
        bad = copy.deepcopy(good)
        parent = bad
        for part in path[:-1]:
            parent = parent[part]
        del parent[path[-1]]
        found = _read(bad)
        parent[path[-1]] = None
        assert found in (f"{_named(path)}: missing", _read(bad))


def _read(document: Any) -> Snapshot | str:
    """What is read of it, or why it is not."""
    try:
        return from_builtins(Snapshot, document)
    except UsageError as error:
        return str(error)


def test_keys_of_a_newer_release_are_ignored() -> None:
    document = fakes.as_dict(fakes.sample())
    document["news"] = document["host"]["news"] = document["cgroups"][0]["news"] = {"x": 1}
    assert from_builtins(Snapshot, document) == fakes.sample()


def test_another_schema_is_refused_with_a_hint() -> None:
    with pytest.raises(UsageError, match="schema: expected 1, got 2") as caught:
        from_builtins(Snapshot, {"schema": 2})
    assert caught.value.hint


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"schema": NaN}', b"\xff\xfe\xff", b"[" * 100_000, b'{"schema": ' + b"9" * 5000 + b"}"]
)
def test_what_is_not_json_is_one_line(text: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        from_json(Snapshot, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("document", [None, 3, [], "x"])
def test_what_is_no_object(document: object) -> None:
    with pytest.raises(UsageError, match="document: expected an object"):
        from_builtins(Snapshot, document)


def test_numbers_json_has_not_are_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        snapshot_to_json(replace(fakes.sample(), duration_s=float("inf")))


def test_parse_json_names_the_place() -> None:
    with pytest.raises(UsageError, match="line 2 column 3"):
        parse_json('{"a": 1,\n  b}')


@given(any_text)
@settings(max_examples=500)
def test_unprintable_undoes_printable(text: str) -> None:
    shown = printable(text)
    assert unprintable(shown) == text
    shown.encode("utf-8")
    assert "\n" not in shown


@pytest.mark.parametrize("text", ["\\", "\\q", "\\x8", "\\U00110000", "a\\", "\\xZZ"])
def test_unknown_escapes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"escape|character"):
        unprintable(text)


@given(strategies.times)
def test_times_survive_to_the_nanosecond(at_ns: int) -> None:
    assert parse_rfc3339(rfc3339(at_ns, digits=9)) == at_ns
    assert parse_rfc3339(rfc3339(at_ns, digits=0)) == at_ns // 10**9 * 10**9


@pytest.mark.parametrize(
    "text", ["", "2026-11-22", "2026-13-22T00:00:00Z", "2026-11-22T00:00:00", "2026-11-22T00:00:00+01:00"]
)
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a time|range|month"):
        parse_rfc3339(text)
