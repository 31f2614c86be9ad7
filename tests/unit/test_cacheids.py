# SPDX-License-Identifier: GPL-2.0-only
"""Ids of caches stand for kernel addresses and give nothing of them away; what has addresses is read, and gets ids."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmemwatch import cacheids
from kmemwatch.cacheids import ID, CacheIds
from kmemwatch.codec import from_builtins, snapshot_to_json
from kmemwatch.errors import UsageError
from kmemwatch.model import Event, Snapshot
from tests.unit import fakes

ADDRESS = 0xFFFF_8881_2345_6780


@given(st.sets(st.integers(0, 2**64 - 1), min_size=2))
def test_every_address_has_an_id_of_its_own_of_one_width(addresses: set[int]) -> None:
    ids = CacheIds(b"secret")
    made = {ids[address] for address in addresses}
    assert len(made) == len(addresses)
    assert all(ID.fullmatch(one) for one in made)


def test_a_million_neighbours_have_different_ids() -> None:
    ids = CacheIds(b"secret")
    assert len({ids[ADDRESS + 8 * number] for number in range(1_000_000)}) == 1_000_000


def test_the_secret_decides() -> None:
    assert CacheIds(b"a")[ADDRESS] == CacheIds(b"a")[ADDRESS]
    assert CacheIds(b"a")[ADDRESS] != CacheIds(b"b")[ADDRESS]
    assert CacheIds()[ADDRESS] != CacheIds()[ADDRESS], "without one, everybody has their own"


def test_what_is_kept_is_bounded_and_forgetting_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cacheids, "_MAX_KNOWN", 100)
    ids = CacheIds(b"secret")
    first = [ids[ADDRESS + number] for number in range(1000)]
    assert len(ids) <= 100
    assert [ids[ADDRESS + number] for number in range(1000)] == first


def _older(document: dict[str, Any]) -> dict[str, Any]:
    """The same as releases before ids wrote it."""
    numbers: dict[str, str] = {}

    def address(cache_id: str | None) -> str | None:
        return None if cache_id is None else numbers.setdefault(cache_id, f"{ADDRESS + 0x100 * len(numbers):#x}")

    for cache in document["caches"]:
        cache["address"] = address(cache.pop("id"))
    rows = [slabs for cgroup in document["cgroups"] for slabs in cgroup["child_slabs"] or ()]
    for row in document["pairs"] + rows:
        row["cache_address"] = address(row.pop("cache_id"))
    return document


@pytest.mark.parametrize("make", [fakes.sample, fakes.patched, fakes.unknown])
def test_older_documents_are_read_and_their_addresses_are_gone(make: Any) -> None:
    now = make()
    found = from_builtins(Snapshot, _older(fakes.as_dict(now)))
    assert b"0x" not in snapshot_to_json(found)
    # One cache, one id: rows refer to it as before.
    names = dict(zip([c.id for c in now.caches], [c.id for c in found.caches], strict=True))
    assert len(set(names)) == len(set(names.values()))
    assert [names.get(p.cache_id) for p in now.pairs] == [p.cache_id for p in found.pairs]
    before = [s.cache_id for c in now.cgroups for s in c.child_slabs or ()]
    assert [names[cache_id] for cache_id in before] == [s.cache_id for c in found.cgroups for s in c.child_slabs or ()]


def test_an_address_for_a_name_becomes_one_name_everywhere() -> None:
    document = _older(fakes.as_dict(fakes.patched()))
    text = f"{ADDRESS + 0x77:#x}"
    rows = [slabs for cgroup in document["cgroups"] for slabs in cgroup["child_slabs"] or ()]
    totals = document["recharges"]["pairs"] + document["recharges"]["totals"]
    for row in (document["pairs"][0], rows[0], *totals):
        row["cache"] = text
    document["caches"][0] |= {"name": text, "address": text}
    document["caches"][1]["root"] = text
    document["probes"][0]["why"] = f"what lies at {text} is a probe of 'other'"
    found = from_builtins(Snapshot, document)
    event = from_builtins(Event, fakes.as_dict(Event(0, "recharge", cache=text)))
    names = {found.caches[0].name, found.caches[1].root, found.pairs[0].cache, event.cache}
    names |= {one.cache for one in found.recharges.pairs or ()} | {one.cache for one in found.recharges.totals or ()}
    assert names == {f"unnamed:{found.caches[0].id}"}
    assert found.probes[0].why == "what lies at (an address) is a probe of 'other'"
    assert b"0x" not in snapshot_to_json(found)


@pytest.mark.parametrize(
    "wrong", ["0xffff8881234567801", "0xffff_8881", "ffff888123456780", ADDRESS, "0xffff88812345678g"]
)
def test_what_is_no_address_is_named_and_not_shown(wrong: object) -> None:
    document = _older(fakes.as_dict(fakes.sample()))
    document["caches"][3]["address"] = wrong
    with pytest.raises(UsageError, match=re.escape("caches[3].address: expected an address")) as caught:
        from_builtins(Snapshot, document)
    assert "888" not in str(caught.value)
    assert str(ADDRESS) not in str(caught.value)


@pytest.mark.parametrize("wrong", ["", "K5MW2PCQ7XG3", "k5mw2pcq7xg", "k5mw2pcq7xg33", "k5mw2pcq7xg1", 7, ["a"]])
def test_what_is_no_id_is_named(wrong: object) -> None:
    document = json.loads(snapshot_to_json(fakes.sample()))
    document["pairs"][2]["cache_id"] = wrong
    with pytest.raises(UsageError, match=re.escape("pairs[2].cache_id: expected the id of a cache")):
        from_builtins(Snapshot, document)
