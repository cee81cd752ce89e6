"""container/lws renders without a network, is what LWS and Kubernetes accept, and fits together."""

from __future__ import annotations

import functools
import itertools
import json
import os
from pathlib import Path
from typing import Any

import crds
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate import utils
from rendered import MANIFESTS, Document, Template, all_templates, directories, render, templates

from launcher.settings import PORT

DIRECTORIES = directories()
SETS = [d for d in DIRECTORIES if d != "base"]
COMPONENTS = sorted(file.parent.name for file in (MANIFESTS / "components").glob("*/kustomization.yaml"))
# The newest that kubernetes-validate knows, and the oldest in which a StatefulSet can number workers from 1.
VERSIONS = ("1.27.0", utils.latest_version())
LWS = "leaderworkerset.sigs.k8s.io"
# Custom kinds of others, whose schemas are not at hand: what is checked of them has a test of its own below.
OTHERS = {"PodMonitor"}

# Read once instead of once per document.
utils.schema_contents = functools.cache(utils.schema_contents)
utils.all_versions = functools.cache(utils.all_versions)


def accepted(document: Document) -> None:
    """Raises where the API server would not take it."""
    if document["kind"] in crds.FILES:
        faults = [
            f"{fault.json_path}: {fault.message}" for fault in crds.validator(document["kind"]).iter_errors(document)
        ]
        assert not faults, faults
        for template in templates(document):
            pod = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}}
            inner = {"metadata": template.metadata, "spec": template.spec}
            for version in VERSIONS:
                kubernetes_validate.validate(pod | {"template": inner}, version, strict=True)
    elif document["kind"] not in OTHERS:
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_a_directory_renders_to_what_the_api_server_accepts(directory: str) -> None:
    documents = render(directory)
    assert documents
    for document in documents:
        accepted(document)
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("breakage", ["unknown field", "wrong type", "bad enum", "unknown pod field"])
def test_a_fault_in_a_manifest_is_noticed(breakage: str) -> None:
    document: Document = json.loads(
        json.dumps(next(d for d in render("vllm-native") if d["kind"] == "LeaderWorkerSet"))
    )
    template = document["spec"]["leaderWorkerTemplate"]
    if breakage == "unknown field":
        template["sizes"] = 2
    elif breakage == "wrong type":
        template["size"] = "2"
    elif breakage == "bad enum":
        template["restartPolicy"] = "Always"
    else:
        template["workerTemplate"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        accepted(document)


def single_sets() -> list[str]:
    """Those directories whose only set is a LeaderWorkerSet called "model": what every component can be added to."""
    return [d for d in SETS if "overlays" not in d and d not in ("sglang-disaggregated", "disaggregatedset")]


@pytest.mark.parametrize("directory", single_sets())
def test_all_components_can_be_added_to_every_set(directory: str, tmp_path: Path) -> None:
    last = "split"  # it copies what the others have made
    order = [c for c in COMPONENTS if c != last] + [last]
    lines = ["apiVersion: kustomize.config.k8s.io/v1beta1", "kind: Kustomization"]
    lines += ["resources:", f"  - {os.path.relpath(MANIFESTS / directory, tmp_path)}", "components:"]
    lines += [f"  - {os.path.relpath(MANIFESTS / 'components' / name, tmp_path)}" for name in order]
    (tmp_path / "kustomization.yaml").write_text("\n".join(lines) + "\n")
    documents = render(str(tmp_path))
    for document in documents:
        accepted(document)
    (made,) = [d for d in documents if d["kind"] == "LeaderWorkerSet"]
    template = made["spec"]["leaderWorkerTemplate"]
    assert template["leaderTemplate"] == template["workerTemplate"]
    pod = template["workerTemplate"]["spec"]
    assert pod["schedulerName"] == "volcano"
    assert pod["containers"][0]["command"][0] == "/lwsrun/lwsrun"
    assert pod["containers"][0]["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    assert pod["containers"][0]["resources"]["limits"]["rdma/hca"] == "1"
    assert made["metadata"]["annotations"][f"{LWS}/exclusive-topology"]


def test_the_schemas_kept_here_are_those_of_the_complete_crds() -> None:
    if not crds.COMPLETE.is_dir():
        pytest.skip("there is no ../shared/data with the complete CRDs beside this checkout")
    for kind, file in crds.FILES.items():
        assert json.loads((crds.KEPT / f"{file}.json").read_text()) == crds.trimmed(crds.complete(kind))


def probes(template: Template) -> dict[str, Any]:
    return {name: template.container.get(name) for name in ("startupProbe", "livenessProbe", "readinessProbe")}


def test_what_every_pod_needs_stands_in_every_manifest() -> None:
    """The same probes, the grace told to lwsrun, a /dev/shm, no Service variables, a token, ports by name."""
    (model,) = all_templates("vllm-native")
    for directory in SETS:
        found = all_templates(directory)
        assert found, directory
        for template in found:
            pod, container = template.spec, template.container
            env = {v["name"]: v for v in container["env"]}
            assert probes(template) == probes(model), directory
            assert pod["enableServiceLinks"] is False
            assert pod["automountServiceAccountToken"] is False
            assert env["LWSRUN_TERMINATION_GRACE_PERIOD"]["value"] == str(pod["terminationGracePeriodSeconds"])
            assert env["LWSRUN_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "lwsrun", "key": "token"}
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert ports["lwsrun"] == PORT
            assert "http" in ports
            assert container["command"][1:] == ["start", "--"]
            assert container["terminationMessagePath"] == "/dev/termination-log"
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            mounts = {m["mountPath"]: m["name"] for c in all_containers(pod) for m in c.get("volumeMounts", [])}
            assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
            assert set(mounts.values()) == set(volumes), directory
            if pod["securityContext"].get("runAsNonRoot"):
                assert volumes[mounts[env["HOME"]["value"]]]["emptyDir"] == {}


def all_containers(pod: Document) -> list[Document]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.mark.parametrize("directory", SETS)
def test_services_policies_and_monitors_name_pods_and_ports_that_there_are(directory: str) -> None:
    documents = render(directory)
    pods: list[dict[str, str]] = []  # labels
    ports: set[str] = set()
    for document in documents:
        for template in templates(document):
            own = {f"{LWS}/name": template.name, f"{LWS}/worker-index": "0"}
            if document["kind"] == "DisaggregatedSet":
                own["disaggregatedset.x-k8s.io/name"] = document["metadata"]["name"]
            pods.append(own | template.metadata.get("labels", {}))
            ports |= {port["name"] for port in template.container["ports"]}
        if document["kind"] == "Deployment":
            pods.append(document["spec"]["template"]["metadata"]["labels"])
            ports |= {p["name"] for c in document["spec"]["template"]["spec"]["containers"] for p in c["ports"]}
    sets = {d["metadata"]["name"] for d in documents if d["kind"] in crds.FILES}
    for document in documents:
        spec = document["spec"]
        if document["kind"] == "Service":
            assert document["metadata"]["name"] not in sets, "LWS makes a headless Service of the set's name"
            assert any(spec["selector"].items() <= labels.items() for labels in pods)
            assert {port["targetPort"] for port in spec["ports"]} <= ports
        if document["kind"] == "NetworkPolicy":
            assert any(selected(spec["podSelector"], labels) for labels in pods)
            assert {port["port"] for rule in spec["ingress"] for port in rule.get("ports", [])} <= ports
        if document["kind"] == "PodMonitor":
            assert any(selected(spec["selector"], labels) for labels in pods)
            assert {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]} <= ports
        if document["kind"] == "HorizontalPodAutoscaler":
            target = spec["scaleTargetRef"]
            assert any(
                (d["apiVersion"], d["kind"], d["metadata"]["name"])
                == (target["apiVersion"], target["kind"], target["name"])
                for d in documents
            )


def test_the_pods_of_other_controllers_are_pods_that_kubernetes_takes() -> None:
    pods: dict[str, list[Document]] = {}
    for file in (MANIFESTS.parent / "others").glob("*.yaml"):
        spec = yaml.safe_load(file.read_text())["spec"]
        if file.stem == "grove":
            pods[file.stem] = [clique["spec"]["podSpec"] for clique in spec["template"]["cliques"]]
        elif file.stem == "kserve":
            pods[file.stem] = [spec["template"], spec["worker"]]
        else:
            extra = [dict(service["extraPodSpec"]) for service in spec["services"].values()]
            pods[file.stem] = [{"containers": [{"name": "main", **pod.pop("mainContainer")}], **pod} for pod in extra]
    assert set(pods) == {"grove", "kserve", "dynamo"}
    for pod in (pod for found in pods.values() for pod in found):
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def selected(selector: Document, labels: dict[str, str]) -> bool:
    if not selector.get("matchLabels", {}).items() <= labels.items():
        return False
    return all(labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []))


def test_the_pods_of_a_set_may_reach_each_other_on_every_port() -> None:
    """NCCL, gloo, Ray and torch draw their ports: a policy that names ports for peers would hang the group."""
    for directory in (d for d in SETS if "overlays" not in d):
        policies = [d["spec"] for d in render(directory) if d["kind"] == "NetworkPolicy"]
        free = [
            policy
            for policy, rule in itertools.chain.from_iterable(((p, r) for r in p["ingress"]) for p in policies)
            if "ports" not in rule and rule["from"] == [{"podSelector": policy["podSelector"]}]
        ]
        assert free, directory
