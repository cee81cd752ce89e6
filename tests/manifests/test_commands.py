"""What each manifest's leader and last worker would do, kept as text so that a change is seen in review.

The command is read as in a cluster: Kubernetes expands $(VAR), the controller's variables come first, the options are
those of `lwsrun start` in arguments and environment, and the GPUs are the pod's limit. `make golden` writes the files
anew; then read the difference.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from rendered import ROOT, Template, all_templates, command, directories, environment, expand, lws_variables

from backends.group import parse_group
from launcher import cli, preview
from launcher.budget import share_out
from launcher.options import OF_BACKENDS, make_options
from launcher.token import VARIABLE, read_token

GOLDEN = Path(__file__).parent / "golden"
WRITE = bool(os.environ.get("LWSRUN_WRITE_GOLDEN"))
OTHERS = ROOT / "container" / "others"
ONE_FILE = "LWSRUN_EXTRACT_DIR"  # read by dist/lwsrun before the launcher is there
RAY = "2.60.0"
WITH_RAY = ("vllm-ray", "ray-leader-excluded")  # whose images have Ray
SETS = [d for d in directories() if d != "base" and "overlays" not in d]
OVERLAYS = [d for d in directories() if "overlays" in d]


@pytest.fixture
def pod_environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable of the machine that runs the tests counts as the pod's."""
    for name in list(os.environ):
        if name.startswith(("LWSRUN_", "LWS_")):
            monkeypatch.delenv(name)
    return monkeypatch


def planned(
    argv: list[str], environ: Mapping[str, str], size: int, gpus: int, index: int, patch: pytest.MonkeyPatch,
    ray: str | None = None, command: tuple[str, ...] = (),
) -> str:  # fmt: skip
    """`lwsrun plan` of a pod's own command line and environment. command: the leader's, where the pod gives none."""
    start = argv.index("start")
    with patch.context() as inner:
        for name, value in environ.items():
            if name.startswith("LWSRUN_"):
                inner.setenv(name, value)
        context = cli.start.make_context("lwsrun start", argv[start + 1 :])
    given: dict[str, Any] = context.params
    known = {option.envvar or f"LWSRUN_{str(option.name).upper()}" for option in cli.start.params}
    unknown = {n for n in environ if n.startswith("LWSRUN_")} - known - {VARIABLE, ONE_FILE}
    assert not unknown, f"no option of `lwsrun start` reads {', '.join(sorted(unknown))}"
    assert read_token(environ.get(VARIABLE), given["token_file"]), "every manifest has a token"
    budget = share_out(given["drain_timeout"], given["drain_delay"], given["termination_grace_period"])
    options = make_options(
        answering=budget.answering, channel_port=given["port"], **{name: given[name] for name in OF_BACKENDS}
    )
    own = {name: value for name, value in environ.items() if not name.startswith("LWSRUN_")}
    # What `lwsrun plan` takes the image to have, unless it is told otherwise.
    images = {str(o.name).removeprefix("image_"): o.default for o in cli.plan.params if str(o.name)[:6] == "image_"}
    ((_, text),) = preview.preview(
        argv=given["command"] or command, size=size, gpus=gpus, options=options, index=index, environ=own,
        **images | {"ray": ray},
    )  # fmt: skip
    return text


def leader_and_last(directory: str) -> Iterator[tuple[Template, int]]:
    for template in all_templates(directory):
        for index in (0, template.size - 1):
            if index in template.indexes:
                yield template, index


def plans(directory: str, patch: pytest.MonkeyPatch) -> str:
    ray = RAY if directory in WITH_RAY else None
    parts, command_of_leader = [], list[str]()
    gpus = max(template.gpus for template in all_templates(directory))
    for template, index in leader_and_last(directory):
        environ = environment(template, index, lws_variables(template, index))
        argv = command(template, environ)
        inner = tuple(argv[argv.index("--") + 1 :])
        command_of_leader = command_of_leader or list(inner)
        shown = shlex.join(argv)
        text = planned(argv, environ, template.size, gpus, index, patch, ray, tuple(command_of_leader))
        parts.append(f"# {template.name}, index {index}\n$ {shown}\n{text}\n")
    return "\n".join(parts)


def compare(name: str, got: str) -> None:
    file = GOLDEN / name
    if WRITE:
        file.write_text(got)
    assert file.exists(), f"{name} is missing: run `make golden`, and read it"
    assert got == file.read_text(), "the plan has changed: run `make golden`, and read the difference"


@pytest.mark.parametrize("directory", SETS)
def test_a_manifest_is_planned_as_it_was_reviewed(directory: str, pod_environ: pytest.MonkeyPatch) -> None:
    compare(f"{directory}.txt", plans(directory, pod_environ))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_changes_where_pods_run_and_not_what_they_do(overlay: str, pod_environ: pytest.MonkeyPatch) -> None:
    base = "vllm-dp" if overlay == "overlays/llm-d" else "vllm-native"

    def actions(directory: str) -> list[str]:
        text = plans(directory, pod_environ)
        return [line for line in text.splitlines() if not line.startswith("$ ")]

    assert actions(overlay) == actions(base)


def test_where_the_worker_leaves_the_command_out_it_stands_in_the_leaders_template_alone() -> None:
    leader, worker = all_templates("overlays/split")
    assert leader.container["args"][0] == "vllm"
    assert "args" not in worker.container
    assert leader.metadata["labels"]["role"] == "leader"
    assert "role" not in worker.metadata["labels"]


def others() -> Iterator[tuple[str, dict[str, Any], int, Mapping[int, Mapping[str, str]]]]:
    """(name, container, GPUs, variables that the controller gives by index) of the other controllers' manifests."""
    for file in sorted(OTHERS.glob("*.yaml")):
        spec = yaml.safe_load(file.read_text())["spec"]
        if file.stem == "grove":
            (leader, worker) = spec["template"]["cliques"]
            assert leader["spec"]["podSpec"] == worker["spec"]["podSpec"]
            group = {
                "GROVE_PCSG_NAME": "model-0-group",
                "GROVE_PCSG_INDEX": "0",
                "GROVE_PCSG_TEMPLATE_NUM_PODS": "2",
                "GROVE_HEADLESS_SERVICE": "model-0.default.svc.cluster.local",
                "GROVE_PCLQ_POD_INDEX": "0",
            }
            names = {0: leader["name"], 1: worker["name"]}
            given = {i: group | {"GROVE_PCLQ_NAME": f"model-0-group-0-{name}"} for i, name in names.items()}
            yield file.stem, leader["spec"]["podSpec"]["containers"][0], 8, given
            continue
        lws = {i: lws_variables(Template("model", 2, range(2), {}, {}), i) for i in (0, 1)}
        if file.stem == "kserve":
            assert spec["template"] == spec["worker"]
            axes = spec["parallelism"]
            assert axes["data"] / axes["dataLocal"] == 2
            yield file.stem, spec["template"]["containers"][0], 8, lws
        else:
            service = spec["services"]["decode"]
            assert service["multinode"]["nodeCount"] == 2
            yield file.stem, service["extraPodSpec"]["mainContainer"], int(service["resources"]["limits"]["gpu"]), lws


@pytest.mark.parametrize(
    ("name", "container", "gpus", "given"), list(others()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_another_controllers_manifest_is_planned_as_it_was_reviewed(
    name: str, container: dict[str, Any], gpus: int, given: Mapping[int, Mapping[str, str]],
    pod_environ: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    parts = []
    for index in sorted(given):
        template = Template(name, 2, range(2), {}, {"containers": [container]})
        environ = environment(template, index, given[index])
        argv = command(template, environ)
        group = parse_group(environ)
        assert (group.size, group.index) == (2, index)
        text = planned(argv, environ, 2, gpus, index, pod_environ)
        parts.append(f"# {name}, index {index}, led from {group.leader_address}\n$ {shlex.join(argv)}\n{text}\n")
    compare(f"{name}.txt", "\n".join(parts))


def test_every_golden_file_belongs_to_a_manifest() -> None:
    belong = {f"{d}.txt" for d in SETS} | {f"{file.stem}.txt" for file in OTHERS.glob("*.yaml")}
    left = {file.name for file in GOLDEN.iterdir()} - belong
    if WRITE:
        for name in left:
            (GOLDEN / name).unlink()
    else:
        assert not left, "no manifest makes these any more: run `make golden`"


def test_a_dollar_that_is_the_shells_reaches_the_shell() -> None:
    (template,) = all_templates("llama-cpp")
    written = template.container["args"][-1]
    got = expand(written, environment(template, 0, lws_variables(template, 0)))
    assert "$$(nproc)" in written
    assert "--threads $(nproc)" in got
    assert '"$NODE_RANK"' in got
    assert "/models/model.gguf" in got
