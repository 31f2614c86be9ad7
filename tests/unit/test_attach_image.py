# SPDX-License-Identifier: GPL-2.0-only
"""Instructions and the maps they speak of, on bytecode made by hand."""

from __future__ import annotations

import struct
import sys

import pytest

from kmemwatch.attach import image

MOV_0 = struct.pack("=BBhi", 0xB7, 0, 0, 0)
EXIT = struct.pack("=BBhi", 0x95, 0, 0, 0)


def load_64(value: int, source: int, upper: int = 0) -> bytes:
    """``r1 = value``, two instructions long."""
    registers = 1 | source << 4 if sys.byteorder == "little" else 1 << 4 | source
    return struct.pack("=BBhi", 0x18, registers, 0, value) + struct.pack("=BBhi", 0, 0, 0, upper)


def test_only_maps_are_found() -> None:
    code = MOV_0 + load_64(7, 1) + load_64(8, 0) + load_64(9, 1) + EXIT
    assert list(image.map_references(code)) == [(8, 7), (40, 9)]


def test_the_upper_half_of_a_constant_is_no_instruction() -> None:
    # Its second half looks like the first half of a reference to map 5.
    constant = struct.pack("=BBhi", 0x18, 1, 0, 1) + load_64(5, 1)[:8]
    assert list(image.map_references(constant + EXIT)) == []


def test_translated_there_and_back_nothing_has_changed() -> None:
    code = MOV_0 + load_64(7, 1) + load_64(7, 0) + load_64(9, 1) + load_64(7, 1) + EXIT
    numbered = image.translate(code, {7: 0, 9: 1})
    assert list(image.map_references(numbered)) == [(8, 0), (40, 1), (56, 0)]
    assert numbered != code
    assert image.translate(numbered, {0: 7, 1: 9}) == code


def test_a_descriptor_of_no_map_of_ours() -> None:
    with pytest.raises(KeyError):
        image.translate(load_64(7, 1) + EXIT, {8: 0})


@pytest.mark.parametrize("source", [2, 3, 4, 6])
def test_references_to_anything_but_maps_are_not_understood(source: int) -> None:
    """BPF_PSEUDO_MAP_VALUE, BTF_ID, FUNC, MAP_IDX_VALUE."""
    with pytest.raises(ValueError, match="instruction 1: a reference"):
        image.translate(MOV_0 + load_64(7, source) + EXIT, {7: 0})


def test_a_program_that_ends_in_the_middle_of_an_instruction() -> None:
    with pytest.raises(struct.error):
        image.translate(EXIT + b"\x18\x11", {})
