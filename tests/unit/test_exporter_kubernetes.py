# SPDX-License-Identifier: GPL-2.0-only
"""Pods and containers from paths, as kubelet and the runtimes write them."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmemwatch.exporter.kubernetes import LABELS, labels
from kmemwatch.exporter.selection import KUBERNETES, SelectionOptions
from tests.unit import fakes
from tests.unit.test_exporter_series import OPENMETRICS, Scraper, cgroup, pair, pick, snapshot_of

UID = "8e6f3d2a-1b4c-4d5e-9f60-718293a4b5c6"
UID_ = UID.replace("-", "_")
STATIC = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
ID = "0123456789abcdef" * 4
NOTHING = ("", "", "")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        # systemd driver
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope",
            ("burstable", UID, f"containerd://{ID}"),
        ),
        (
            f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_}.slice/crio-{ID}.scope",
            ("besteffort", UID, f"cri-o://{ID}"),
        ),
        (f"/kubepods.slice/kubepods-pod{UID_}.slice/docker-{ID}.scope", ("guaranteed", UID, f"docker://{ID}")),
        (f"/kubepods.slice/kubepods-pod{UID_}.slice", ("guaranteed", UID, "")),
        (f"/kubepods.slice/kubepods-pod{STATIC}.slice/docker-{ID}.scope", ("guaranteed", STATIC, f"docker://{ID}")),
        # a container's own cgroups, and CRI-O's extra one
        (f"/kubepods.slice/kubepods-pod{UID_}.slice/crio-{ID}.scope/container", ("guaranteed", UID, f"cri-o://{ID}")),
        (
            f"/kubepods.slice/kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope/system.slice/a.service",
            ("guaranteed", UID, f"containerd://{ID}"),
        ),
        (f"/kubepods.slice/kubepods-pod{UID_}.slice/crio-conmon-{ID}.scope", ("guaranteed", UID, "")),
        # cgroupfs driver
        (f"/kubepods/burstable/pod{UID}/{ID}", ("burstable", UID, ID)),
        (f"/kubepods/besteffort/pod{UID}/crio-{ID}", ("besteffort", UID, f"cri-o://{ID}")),
        (f"/kubepods/pod{UID}/{ID}/init.scope", ("guaranteed", UID, ID)),
        (f"/kubepods/burstable/pod{STATIC}", ("burstable", STATIC, "")),
        # the two mixed
        (
            f"/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}",
            ("burstable", UID, f"containerd://{ID}"),
        ),
        # Kubernetes in containers
        (
            f"/system.slice/docker-{ID}.scope/kubelet/kubepods/besteffort/pod{UID}/{'f' * 64}",
            ("besteffort", UID, "f" * 64),
        ),
        (
            f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope",
            ("guaranteed", UID, f"containerd://{ID}"),
        ),
        # nobody's pod
        ("/", NOTHING),
        ("?", NOTHING),
        ("other", NOTHING),
        ("/kubepods", NOTHING),
        ("/kubepods.slice/kubepods-burstable.slice", NOTHING),
        ("/user.slice/podman.service", NOTHING),
        (f"/machine.slice/libpod-{ID}.scope", NOTHING),
        (f"/docker/{ID}", NOTHING),
        (f"/pod{UID}", NOTHING),
        (f"pod{UID}", NOTHING),
        (f"/user/pod{UID}/{ID}", NOTHING),
        (f"/guaranteed/pod{UID}/{ID}", NOTHING),
        (f"/kubepods/burstable/pod{UID}x/{ID}", NOTHING),
        (f"/kubepods/burstable/pod{UID[:-1]}/{ID}", NOTHING),
    ],
)
def test_paths(path: str, expected: tuple[str, str, str]) -> None:
    assert labels(path) == expected


uids = st.uuids().map(str) | st.text("0123456789abcdef", min_size=32, max_size=32)
ids = st.text("0123456789abcdef", min_size=64, max_size=64)
classes = st.sampled_from(("guaranteed", "burstable", "besteffort"))
below = st.lists(st.text(string.ascii_letters + ".-_", min_size=1), max_size=2)
roots = st.sampled_from(("", "kubelet", "system.slice/kubelet.service", "a/b"))


@given(uids, ids, classes, below, st.sampled_from(("cri-containerd", "crio", "docker")), roots)
def test_systemd(uid: str, id_: str, qos: str, inner: list[str], runtime: str, root: str) -> None:
    names = ["kubepods"] if qos == "guaranteed" else ["kubepods", f"kubepods-{qos}"]
    slices = [f"{name}.slice" for name in (*names, f"{names[-1]}-pod{uid.replace('-', '_')}")]
    path = "/".join(["", *filter(None, [root]), *slices, f"{runtime}-{id_}.scope", *inner])
    scheme = {"cri-containerd": "containerd", "crio": "cri-o", "docker": "docker"}[runtime]
    assert labels(path) == (qos, uid, f"{scheme}://{id_}")


@given(uids, ids, classes, below, roots)
def test_cgroupfs(uid: str, id_: str, qos: str, inner: list[str], root: str) -> None:
    parts = ["", *filter(None, [root]), "kubepods", *([qos] if qos != "guaranteed" else []), f"pod{uid}", id_, *inner]
    assert labels("/".join(parts)) == (qos, uid, id_)


@given(st.text())
def test_any_text_is_a_path(path: str) -> None:
    assert len(labels(path)) == len(LABELS)


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_series_have_the_labels(accept: str) -> None:
    pod = f"/kubepods/burstable/pod{UID}"
    cgroups = [cgroup(1, "/a", 10, 100), cgroup(2, pod, 20, 200), cgroup(3, f"{pod}/{ID}", 20, 300)]
    scraper = Scraper(selection=SelectionOptions(naming=KUBERNETES).selection())
    series = scraper.scrape(snapshot_of(0, cgroups, [pair(1, 5), pair(3, 7)]), accept)
    # In order of label names: cgroup, container_id, qos, uid.
    assert pick(series, "cgroup_kernel_bytes") == {
        ("/a", "", "", ""): 10,
        (pod, "", "burstable", UID): 20,
        (f"{pod}/{ID}", ID, "burstable", UID): 20,
    }
    assert pick(series, "cgroup_cache_allocations_total") == {
        ("dentry", "/a", "", "", ""): 5,
        ("dentry", f"{pod}/{ID}", ID, "burstable", UID): 7,
    }
    assert pick(series, "dying_cgroups") == {(): 0}


def test_folded_cgroups_belong_to_no_pod() -> None:
    scraper = Scraper(1000, SelectionOptions(naming=KUBERNETES).selection())
    series = scraper.scrape(fakes.big(cgroups=2000, caches_each=3))
    assert ("other", "", "", "") in pick(series, "cgroup_kernel_bytes")
