"""The schemas of LWS's own kinds, without what Kubernetes' schemas say better: the pod templates."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import yaml

KEPT = Path(__file__).parent / "schemas"
COMPLETE = Path(__file__).parents[3] / "shared" / "data"
FILES = {
    "LeaderWorkerSet": "leaderworkerset.x-k8s.io_leaderworkersets",
    "DisaggregatedSet": "disaggregatedset.x-k8s.io_disaggregatedsets",
}
# Validated as Kubernetes' own kinds instead.
TEMPLATES = ("leaderTemplate", "workerTemplate", "volumeClaimTemplates")


def trimmed(crd: dict[str, Any]) -> dict[str, Any]:
    """The version's schema without prose and pod templates, in which an unknown field is a fault."""
    (version,) = crd["spec"]["versions"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    schema["properties"]["apiVersion"]["const"] = f"{crd['spec']['group']}/{version['name']}"
    schema["properties"]["kind"]["const"] = crd["spec"]["names"]["kind"]
    del schema["properties"]["status"]
    return schema


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in schema.items() if key not in ("description", "default", "properties", "items")}
    kept = {key: value for key, value in kept.items() if not key.startswith("x-kubernetes")}
    if "properties" in schema:
        kept["properties"] = {
            name: {} if name in TEMPLATES else strict(inner) for name, inner in schema["properties"].items()
        }
        kept["additionalProperties"] = False
    if "items" in schema:
        kept["items"] = strict(schema["items"])
    return kept


def complete(kind: str) -> dict[str, Any]:
    text = (COMPLETE / f"{FILES[kind]}.yaml").read_text()
    crd: dict[str, Any] = yaml.load(text, Loader=yaml.CSafeLoader)
    return crd


@functools.cache
def validator(kind: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((KEPT / f"{FILES[kind]}.json").read_text()))
