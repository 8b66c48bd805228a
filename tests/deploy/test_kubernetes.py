"""deploy/kubernetes: manifests that its schemas allow, that fit together, and that call the programs as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from ..conftest import ROOT
from .conftest import Resolve, meet

MANIFESTS = {
    (document["kind"], document["metadata"]["name"]): document
    for path in sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
}
SETS = {role: MANIFESTS["StatefulSet", f"apex-{role}"] for role in ("learner", "replay")}
WORKLOADS = SETS | {"actor": MANIFESTS["Deployment", "apex-actor"]}
OLDEST = "1.29"  # pods know their index from 1.28 on, whose schemas the package no longer has


def pod(role: str) -> dict[str, Any]:
    found: dict[str, Any] = WORKLOADS[role]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("version", [OLDEST, None], ids=["oldest", "newest"])
@pytest.mark.parametrize("name", MANIFESTS, ids="/".join)
def test_manifests_are_valid(name: tuple[str, str], version: str | None) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    kubernetes.validate(MANIFESTS[name], version or kubernetes.latest_version(), strict=True)


def test_invalid_manifest_is_detected() -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    wrong = copy.deepcopy(WORKLOADS["actor"])
    wrong["spec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    with pytest.raises(kubernetes.ValidationError, match="imagePolicy"):
        kubernetes.validate(wrong, OLDEST, strict=True)


def test_commands_parse_and_addresses_match(resolve: Resolve) -> None:
    addresses = MANIFESTS["ConfigMap", "apex-addresses"]["data"]
    configs = {}
    for role in WORKLOADS:
        (container,) = pod(role)["containers"]
        assert container["envFrom"] == [{"configMapRef": {"name": "apex-addresses"}}]
        assert [variable["name"] for variable in container.get("env", [])] == ["SHARD"] * (role == "replay")
        command = [word.replace("$(SHARD)", "0") for word in container["command"]]
        command = [word.replace("/config/run.yaml", str(ROOT / "configs/mario-gpu.yaml")) for word in command]
        configs[role] = resolve(command, addresses)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert configs[role].telemetry.metrics_port == ports["metrics"]
        assert configs[role].telemetry.metrics_host == "0.0.0.0"  # or the probes would not reach it
    assert configs["replay"].replay.snapshot_dir == "/snapshots"
    meet(configs)


@pytest.mark.parametrize("role", SETS)
def test_services_probes_and_addresses_name_the_same_ports(role: str) -> None:
    workload, service = SETS[role], MANIFESTS["Service", f"apex-{role}"]
    labels = workload["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == workload["spec"]["selector"]["matchLabels"] == labels
    assert workload["spec"]["serviceName"] == service["metadata"]["name"]
    (container,) = pod(role)["containers"]
    served = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == served
    for name, port in served.items() - {("metrics", 9100)}:
        assert f"--{name}=tcp://0.0.0.0:{port}" in container["command"]
        address = MANIFESTS["ConfigMap", "apex-addresses"]["data"][f"APEX_{name.upper()}"]
        assert address == f"tcp://apex-{role}-0.apex-{role}:{port}"
    for probe in ("startupProbe", "livenessProbe"):  # over TCP they would count as peers without a key
        assert container[probe]["httpGet"] == {"path": "/metrics", "port": "metrics"}


@pytest.mark.parametrize("role", WORKLOADS)
def test_mounted_volumes_and_secret_keys_exist(role: str) -> None:
    volumes = {volume["name"]: volume for volume in pod(role)["volumes"]}
    claims = {claim["metadata"]["name"] for claim in WORKLOADS[role]["spec"].get("volumeClaimTemplates", [])}
    assert len(claims) == (role in SETS)
    for container in [*pod(role)["initContainers"], *pod(role)["containers"]]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys() | claims
        assert container["securityContext"]["readOnlyRootFilesystem"]
    keys = {item["path"] for item in volumes["secret"]["secret"]["items"]}
    channels = {port["name"] for port in pod(role)["containers"][0]["ports"]} - {"metrics"}
    assert keys == {"identity.key_secret", "servers"} | {f"allowed/{channel}" for channel in channels}
