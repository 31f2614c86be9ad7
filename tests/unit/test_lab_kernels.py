# SPDX-License-Identifier: GPL-2.0-only
"""A kernel of our own is what it says it was made from, or it is not taken."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.lab import archive, built
from tests.lab.kernels import KERNELS

RELEASE = "6.1.0-x"
CONFIG = built.LINUX / "patched.config"


@pytest.fixture
def prebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with an image, made as its SHA256SUMS says."""
    directory = tmp_path / "prebuilt"
    directory.mkdir()
    header = bytearray(0x400)
    header[0x20E:0x210] = (0x100).to_bytes(2, "little")
    header[0x300:] = f"{RELEASE} (somebody) #1\0".encode()
    (directory / "bzImage-patched").write_bytes(header)
    write_sums(directory, [*sorted(built.LINUX.glob("*.patch")), CONFIG, directory / "bzImage-patched"])
    monkeypatch.setenv(built.PREBUILT, str(directory))
    return directory


def write_sums(directory: Path, files: list[Path]) -> None:
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (directory / built.SUMS).write_text("".join(lines))


@pytest.fixture
def no_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of a quarter of an hour."""

    def refuse(_: Path) -> Path:
        raise archive.FetchError("would be built")

    monkeypatch.setattr(built, "_source", refuse)
    monkeypatch.setattr(built, "SETUP", "true")


@pytest.mark.usefixtures("no_build")
def test_a_prebuilt_image_is_kept_and_found_again(
    prebuilt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built.obtain({"patched": CONFIG}, tmp_path)
    monkeypatch.delenv(built.PREBUILT)
    built.obtain({"patched": CONFIG}, tmp_path)
    image = built.image("patched", CONFIG, tmp_path)
    assert image.read_bytes() == (prebuilt / "bzImage-patched").read_bytes()
    assert built.release(image) == RELEASE


@pytest.mark.usefixtures("no_build")
@pytest.mark.parametrize("what", ["image", "patch", "fewer patches", "more patches", "config", "no sums"])
def test_an_image_that_is_not_ours_is_built_instead(
    what: str, prebuilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = prebuilt / built.SUMS
    patches = [line for line in sums.read_text().splitlines(keepends=True) if ".patch" in line]
    if what == "image":
        (prebuilt / "bzImage-patched").write_bytes(b"another")
    elif what == "no sums":
        sums.unlink()
    else:
        ours = {"config": CONFIG.name}.get(what, patches[0])
        changed = {
            "patch": sums.read_text().replace(patches[0][:64], "0" * 64),
            "fewer patches": sums.read_text().replace(patches[0], ""),
            "more patches": sums.read_text() + f"{'0' * 64}  0003-more.patch\n",
            "config": "".join(line for line in sums.open() if ours not in line),
        }[what]
        sums.write_text(changed)
    with pytest.raises(archive.FetchError, match="would be built"):
        built.obtain({"patched": CONFIG}, tmp_path)
    assert f"{prebuilt / 'bzImage-patched'}: not made from" in capsys.readouterr().err


@pytest.mark.usefixtures("prebuilt", "no_build")
def test_a_damaged_image_in_the_cache_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    built.obtain({"patched": CONFIG}, tmp_path)
    image = built.image("patched", CONFIG, tmp_path)
    image.write_bytes(image.read_bytes()[:-1])
    with pytest.raises(archive.FetchError, match=rf"damaged.*remove {image.parent}"):
        built.obtain({"patched": CONFIG}, tmp_path)


def test_configurations_differ_in_what_the_series_is_about_only() -> None:
    texts = [(built.LINUX / kernel.config).read_text().splitlines() for kernel in KERNELS if kernel.config]
    different = set(texts[0]) ^ set(texts[1])
    assert different
    assert all("MEMCG_SLAB" in line or line.startswith("CONFIG_LOCALVERSION=") for line in different)
