"""A command that runs as it is: the variables that tell it its place, presets, and what it may wait for."""

from __future__ import annotations

import pytest

from backends.errors import ConfigError
from backends.group import Group
from backends.plan import Kind, Node, Options, Plan, PortOpen, Request
from backends.planner import make_plan

STANDARD = {"MASTER_ADDR": "10.0.0.10", "MASTER_PORT": "29500", "NNODES": "3", "NODE_RANK": "1"}
NIM = {
    "NIM_MULTI_NODE": "1", "NIM_NUM_COMPUTE_NODES": "3", "NIM_NODE_RANK": "1", "NIM_LEADER_ROLE": "0",
    "NIM_LEADER_IP_ADDRESS": "10.0.0.10", "NIM_TENSOR_PARALLEL_SIZE": "8", "NIM_PIPELINE_PARALLEL_SIZE": "3",
}  # fmt: skip


def plan(
    line: str = "run",
    index: int = 1,
    size: int = 3,
    gpus: tuple[int, ...] = (8, 8, 8),
    options: Options | None = None,
    environ: dict[str, str] | None = None,
) -> Plan:
    nodes = tuple(Node(f"10.0.0.1{at}", f"pod-{at}", gpus[at]) for at in range(size))
    group = Group("my-lws-0.my-lws.default", size, index, "id")
    return make_plan(Request(group, nodes, tuple(line.split()), options or Options(), environ or {}))


def env(made: Plan, prefix: str = "") -> dict[str, str]:
    return {variable.name: variable.value for variable in made.env if variable.name.startswith(prefix)}


def test_the_standard_variables_are_set_each_with_a_reason() -> None:
    made = plan()
    assert env(made) == STANDARD
    assert all(variable.reason for variable in made.env)


def test_processes_are_not_counted_for_a_command_that_we_do_not_know() -> None:
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} & env(plan()).keys()


@pytest.mark.parametrize("name", STANDARD)
def test_a_standard_variable_that_the_user_set_is_left_alone(name: str) -> None:
    assert env(plan(environ={name: "theirs"})) == {k: v for k, v in STANDARD.items() if k != name}


def test_a_place_that_came_from_the_standard_variables_stays_as_it_was() -> None:
    made = plan(environ={"MASTER_ADDR": "my-lws-0.my-lws.default", "NNODES": "3", "NODE_RANK": "1"})
    assert env(made) == {"MASTER_PORT": "29500"}
    assert made.notes == ()


def test_one_that_contradicts_the_group_is_left_alone_and_said() -> None:
    made = plan(environ={"NNODES": "4", "NODE_RANK": "0"})
    assert made.notes == (
        "NNODES=4 is left as it was set, although the group's size is 3",
        "NODE_RANK=0 is left as it was set, although this pod's index is 1",
    )


def test_env_of_the_user_wins() -> None:
    assert env(plan(options=Options(env=(("MASTER_PORT", "1234"),))))["MASTER_PORT"] == "1234"


def test_a_known_engine_gets_them_only_where_it_is_run_as_it_is() -> None:
    assert env(plan("trtllm-serve m", 0, 1)) == {}
    assert env(plan("python3 -m sglang.launch_server", options=Options(backend="generic"))) == STANDARD
    assert env(plan("run", 0, 1)) == {**STANDARD, "NNODES": "1", "NODE_RANK": "0"}


ACCELERATORS = {
    "TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b", "TPU_NAME": "a", "TPU_PROCESS_ADDRESSES": "a:8476",
    "TPU_PROCESS_PORT": "8476", "NEURON_RT_ROOT_COMM_ID": "leader:8990", "NEURON_RT_NUM_CORES": "32",
}  # fmt: skip


@pytest.mark.parametrize("line", ["run", "torchrun t.py", "vllm serve m -tp 8"])
@pytest.mark.parametrize("preset", [None, "nim"])
@pytest.mark.parametrize("environ", [ACCELERATORS, {}])
def test_tpu_and_neuron_variables_are_left_alone(line: str, preset: str | None, environ: dict[str, str]) -> None:
    if line != "run" and preset:
        return
    made = plan(line, 0, 1, options=Options(preset=preset), environ=environ)
    assert not any(name.startswith(("TPU_", "NEURON_")) for name in env(made))


# --- NIM ---


def test_nim_learns_its_role_from_its_own_variables() -> None:
    made = plan(options=Options(preset="nim"))
    assert env(made) == {**STANDARD, **NIM}
    assert made.kind is Kind.SERVER
    assert made.mode == "as it is, --preset nim"
    assert env(plan(index=0, options=Options(preset="nim")), "NIM_")["NIM_LEADER_ROLE"] == "1"


def test_a_nim_alone_is_no_multi_node_one() -> None:
    assert env(plan("run", 0, 1, options=Options(preset="nim")), "NIM_") == {}


@pytest.mark.parametrize("name", NIM)
def test_a_nim_variable_that_the_user_set_is_left_alone(name: str) -> None:
    assert name not in env(plan(options=Options(preset="nim"), environ={name: "8"}))


@pytest.mark.parametrize(
    ("theirs", "gpus", "layout"),
    [
        ({}, (8, 8, 8), {"TENSOR": "8", "PIPELINE": "3"}),
        ({"NIM_TENSOR_PARALLEL_SIZE": "24"}, (8, 8, 8), {"PIPELINE": "1"}),
        ({"NIM_PIPELINE_PARALLEL_SIZE": "6"}, (8, 8, 8), {"TENSOR": "4"}),
        ({"NIM_TENSOR_PARALLEL_SIZE": "7"}, (8, 8, 8), {}),
        ({"NIM_TENSOR_PARALLEL_SIZE": "many"}, (8, 8, 8), {}),
        ({}, (8, 4, 4), {}),
        ({}, (0, 0, 0), {}),
    ],
)
def test_nims_layout_is_what_the_groups_gpus_leave(
    theirs: dict[str, str], gpus: tuple[int, ...], layout: dict[str, str]
) -> None:
    made = env(plan(gpus=gpus, options=Options(preset="nim"), environ=theirs))
    assert {axis: made.get(f"NIM_{axis}_PARALLEL_SIZE") for axis in ("TENSOR", "PIPELINE")} == {
        "TENSOR": None, "PIPELINE": None, **layout,
    }  # fmt: skip


# --- waiting for the workers ---


def test_only_the_leader_waits_for_the_workers_port() -> None:
    options = Options(await_workers=50052)
    gates = (PortOpen("10.0.0.11", 50052, "worker 1"), PortOpen("10.0.0.12", 50052, "worker 2"))
    assert plan(index=0, options=options).gates == gates
    assert plan(index=1, options=options).gates == ()
    assert plan("run", 0, 1, options=options).gates == ()


@pytest.mark.parametrize("line", ["vllm serve m -tp 24", "torchrun t.py"])
@pytest.mark.parametrize(
    ("options", "flag"), [(Options(preset="nim"), "--preset nim"), (Options(await_workers=1), "--await-workers 1")]
)
def test_an_engine_that_forms_its_own_group_takes_no_such_options(line: str, options: Options, flag: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag}: (vllm|torchrun) forms its group by itself"):
        plan(line, options=options)
