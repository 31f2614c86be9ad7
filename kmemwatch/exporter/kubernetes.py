# SPDX-License-Identifier: GPL-2.0-only
"""Labels of pods and containers, from the paths of their cgroups. Pure.

kubelet makes a cgroup for each pod below ``kubepods``, the container runtime one for each container. Their names depend
on the cgroup drivers:

cgroupfs   /kubepods/burstable/pod<uid>/<id>                     containerd, docker
           /kubepods/burstable/pod<uid>/crio-<id>                CRI-O
systemd    /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/cri-containerd-<id>.scope
           .../crio-<id>.scope, .../docker-<id>.scope, with "_" for each "-" in <uid>
mixed      /system.slice/containerd.service/kubepods-burstable-pod<uid>.slice:cri-containerd:<id>
           kubelet with the systemd driver, containerd without

Pods of the class guaranteed are directly below kubepods. The path above it depends on kubelet's --cgroup-root, and
contains a ``kubelet`` cgroup where Kubernetes itself runs in containers. A container may make cgroups of its own.
"""

from __future__ import annotations

import re

LABELS = ("qos", "uid", "container_id")
"""``uid`` and ``container_id`` as in kube-state-metrics, to join with its series: kube_pod_info has the name of a pod,
kube_pod_container_info that of a container."""

_NOTHING = ("", "", "")
"""For Prometheus, an empty label is the same as none."""

_UID = r"(?P<uid>[0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12})"
"""That of a static pod is a hash of 32 digits."""
_POD = re.compile(
    rf"""
    (?: .*-)? kubepods (?:-(?P<slice_qos>besteffort|burstable))? -pod{_UID} \.slice
        (?: : (?P<prefix>[a-z][a-z0-9-]*) : (?P<id>[0-9a-f]{{64}}) )?
    | pod{_UID.replace("uid", "plain_uid")}
    """,
    re.VERBOSE,
)
_CONTAINER = re.compile(r"(?:(?P<runtime>cri-containerd|crio|docker|libpod)-)?(?P<id>[0-9a-f]{64})(?P<scope>\.scope)?")
_QOS = ("besteffort", "burstable")
_RUNTIMES = {"cri-containerd": "containerd", "crio": "cri-o", "docker": "docker"}
"""Prefix in a path -> prefix of the container's id in Kubernetes."""


def labels(path: str) -> tuple[str, str, str]:
    """Values of LABELS for the path of a cgroup; empty outside pods.

    The runtime is part of ``container_id`` where the path names it. With the cgroupfs driver, the paths of containerd
    and docker are the same, and the label is the bare id.
    """
    parts = path.split("/")
    for index, part in enumerate(parts):
        found = _POD.fullmatch(part) if "pod" in part else None
        if found is None:
            continue
        if found["plain_uid"]:
            qos = _class_above(parts[:index])
            if qos is None:
                continue
            return qos, _dashed(found["plain_uid"]), _container(parts[index + 1 :])
        container = _name(found["prefix"], found["id"]) if found["id"] else _container(parts[index + 1 :])
        return found["slice_qos"] or "guaranteed", _dashed(found["uid"]), container
    return _NOTHING


def _class_above(above: list[str]) -> str | None:
    """Quality of service by the directories above a pod; None when they are not kubelet's."""
    if above[-1:] == ["kubepods"]:
        return "guaranteed"
    return above[-1] if len(above) > 1 and above[-1] in _QOS and above[-2] == "kubepods" else None


def _container(below: list[str]) -> str:
    found = _CONTAINER.fullmatch(below[0]) if below else None
    return _name(found["runtime"], found["id"]) if found is not None else ""


def _name(runtime: str | None, container_id: str) -> str:
    known = _RUNTIMES.get(runtime or "")
    return f"{known}://{container_id}" if known else container_id


def _dashed(uid: str) -> str:
    return uid.replace("_", "-")
