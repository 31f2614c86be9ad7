# SPDX-License-Identifier: GPL-2.0-only
"""The manifest for Kubernetes: valid by its own schemas, and about what this kmemwatch has. The container file."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

import kmemwatch
from kmemwatch.attach.warm_start import DIRECTORY
from kmemwatch.cli import serve
from kmemwatch.serve import paths

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "packaging/kubernetes/daemonset.yaml"
CONTAINER_FILE = (ROOT / "packaging/container/Dockerfile").read_text()
DOCS = (ROOT / "docs/running.md").read_text()
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(MANIFEST.read_text()))
VERSIONS = ("1.25", "1.28", "1.31", "1.34", "1.37")


def daemonset() -> dict[str, Any]:
    (found,) = (document for document in DOCUMENTS if document["kind"] == "DaemonSet")
    return found


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = daemonset()["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document["kind"]))
def test_it_is_valid(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_what_is_not_valid_is_noticed() -> None:
    """Else the test above would prove nothing."""
    broken = copy.deepcopy(daemonset())
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


def test_its_options_exist() -> None:
    command, *options = container()["args"]
    assert command == "serve"
    known = set(re.findall(r"--[a-z.-]+", CliRunner().invoke(serve.command, ["--help"]).output))
    assert {option.partition("=")[0] for option in options} <= known
    assert "--cgroup.name=kubernetes" in options


def test_the_selector_selects_its_pods() -> None:
    labels = daemonset()["spec"]["template"]["metadata"]["labels"]
    assert daemonset()["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_probes_ask_where_there_are_answers() -> None:
    (port,) = container()["ports"]
    assert f"--web.listen-address=:{port['containerPort']}" in container()["args"]
    asked = {name: container()[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {where["port"] for where in asked.values()} == {port["name"]}
    assert asked["readinessProbe"]["path"] == paths.READY_PATH
    assert {asked[name]["path"] for name in ("startupProbe", "livenessProbe")} == {paths.HEALTHY_PATH}


def test_it_is_not_privileged_and_every_capability_has_a_reason() -> None:
    security = container()["securityContext"]
    assert security["privileged"] is False
    assert security["capabilities"]["drop"] == ["ALL"]
    for capability in security["capabilities"]["add"]:
        assert f"`CAP_{capability}`" in DOCS
    assert not {"hostPID", "hostNetwork", "hostIPC"} & pod().keys()


def test_what_it_writes_to_can_be_written_to() -> None:
    """Its own file system is read-only."""
    assert container()["securityContext"]["readOnlyRootFilesystem"] is True
    writable = {mount["mountPath"] for mount in container()["volumeMounts"] if not mount.get("readOnly")}
    assert {str(DIRECTORY.parent), "/tmp"} == writable
    assert {mount["name"] for mount in container()["volumeMounts"]} == {one["name"] for one in pod()["volumes"]}


def test_the_image_is_of_this_version() -> None:
    image = f"kmemwatch:{kmemwatch.__version__}"
    assert container()["image"] == image
    assert f"-t {image} " in CONTAINER_FILE


def test_the_container_file_serves_where_the_manifest_expects_it() -> None:
    command = yaml.safe_load(re.findall(r"^CMD (.*)$", CONTAINER_FILE, re.MULTILINE)[0])
    assert command == ["serve", "--web.listen-address", ":10777"]
    assert yaml.safe_load(re.findall(r"^ENTRYPOINT (.*)$", CONTAINER_FILE, re.MULTILINE)[0]) == ["/usr/bin/kmemwatch"]
    # On what the unit and the package were tried on.
    assert set(re.findall(r"^FROM (\S+)", CONTAINER_FILE, re.MULTILINE)) == {"debian:12-slim"}
