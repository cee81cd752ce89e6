"""torchrun: which of its flags are filled in, which are the user's, and which cannot form the group."""

from __future__ import annotations

import pytest

from backends.errors import ConfigError
from backends.group import Group
from backends.plan import EnvVar, Kind, Main, Node, Options, Plan, Request
from backends.planner import make_plan
from backends.torchrun import GRACE
from backends.torchrun_options import read_options


def plan(
    line: str,
    index: int = 1,
    size: int = 2,
    gpus: int = 8,
    environ: dict[str, str] | None = None,
    options: Options | None = None,
    leader_ip: str = "10.0.0.10",
) -> Plan:
    nodes = tuple(Node(leader_ip if at == 0 else f"10.0.0.1{at}", f"pod-{at}", gpus, "NVML") for at in range(size))
    group = Group("my-lws-0.my-lws.default", size, index, "blue")
    return make_plan(Request(group, nodes, tuple(line.split()), options or Options(), environ or {}))


def command(line: str, *args: int, **kwargs: object) -> str:
    main = plan(line, *args, **kwargs).main  # type: ignore[arg-type]
    assert main is not None
    return " ".join(main.argv)


def refusal(line: str, **kwargs: object) -> str:
    with pytest.raises(ConfigError) as caught:
        plan(line, **kwargs)  # type: ignore[arg-type]
    return caught.value.text()


STATIC = "--nnodes 2 --node-rank 1 --master-addr 10.0.0.10 --master-port 29500 --nproc-per-node 8"


@pytest.mark.parametrize(
    "program", ["torchrun", "/opt/venv/bin/torchrun", "numactl -N 0 torchrun", "python3 -m torch.distributed.run",
                "python3 -m torch.distributed.launch"],
)  # fmt: skip
def test_the_static_rendezvous_is_filled_in_before_the_users_own_arguments(program: str) -> None:
    assert command(f"{program} train.py --nnodes 9") == f"{program} {STATIC} train.py --nnodes 9"


def test_the_leader_is_node_zero() -> None:
    assert "--node-rank 0 --master-addr 10.0.0.10" in command("torchrun train.py", index=0)


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        ("--nnodes 2", "--nnodes 2 "),
        ("--nnodes=2", "--nnodes 2 "),
        ("--nn 2", "--nnodes 2 "),
        ("--nnodes 1:2", "--nnodes 2 "),
        ("--node_rank 1", "--node-rank 1 "),
        ("--master-addr my-lws-0.my-lws.default", "--master-addr 10.0.0.10 "),
        ("--master_port=1234", "--master-port 29500 "),
        ("--rdzv-endpoint my-lws-0.my-lws:1234", "--master-addr 10.0.0.10 --master-port 29500 "),
        ("--nproc_per_node=gpu", " --nproc-per-node 8"),
        ("--nproc-per 4", " --nproc-per-node 8"),
    ],
)
def test_what_the_user_gave_is_not_given_again(given: str, left_out: str) -> None:
    assert left_out in STATIC
    assert command(f"torchrun {given} train.py") == f"torchrun {STATIC.replace(left_out, '')} {given} train.py"


@pytest.mark.parametrize(
    ("environ", "left_out"),
    [
        ({"PET_NNODES": "2"}, "--nnodes 2 "),
        ({"PET_NODE_RANK": "1"}, "--node-rank 1 "),
        ({"PET_NPROC_PER_NODE": "2"}, " --nproc-per-node 8"),
    ],
)
def test_torchruns_own_variables_are_the_users_too(environ: dict[str, str], left_out: str) -> None:
    assert command("torchrun train.py", environ=environ) == f"torchrun {STATIC.replace(left_out, '')} train.py"
    options = Options(env=tuple(environ.items()))
    assert command("torchrun train.py", options=options) == f"torchrun {STATIC.replace(left_out, '')} train.py"


def test_a_master_port_in_the_environment_is_used() -> None:
    assert "--master-port 1234" in command("torchrun t.py", environ={"MASTER_PORT": "1234"})
    assert "--master-port 29500" in command("torchrun t.py", environ={"MASTER_PORT": "tcp://10.0.0.1:1"})


def test_without_gpus_the_number_of_processes_is_left_to_torchrun() -> None:
    assert "--nproc-per-node" not in command("torchrun train.py", gpus=0)


def test_alone_only_the_number_of_processes_is_filled_in() -> None:
    assert command("torchrun --standalone t.py", 0, 1) == "torchrun --nproc-per-node 8 --standalone t.py"


def test_an_ipv6_leader_gets_brackets() -> None:
    assert "--master-addr [fd00::1] " in command("torchrun t.py", leader_ip="fd00::1")
    assert "--rdzv-endpoint [fd00::1]:29500" in command("torchrun --rdzv-backend c10d t.py", leader_ip="fd00::1")


@pytest.mark.parametrize(("index", "hosts"), [(0, "true"), (1, "false")])
def test_for_c10d_the_leader_hosts_the_store(index: int, hosts: str) -> None:
    own = "10.0.0.10" if index == 0 else "10.0.0.11"
    assert command("torchrun --rdzv-backend=c10d --nnodes 1:4 t.py", index, gpus=0) == (
        f"torchrun --rdzv-endpoint 10.0.0.10:29500 --rdzv-conf is_host={hosts} --local-addr {own} --rdzv-id blue"
        " --rdzv-backend=c10d --nnodes 1:4 t.py"
    )
    made = plan("torchrun --rdzv-backend=c10d --nnodes 1:4 t.py", index)
    assert made.notes[0].startswith("with --rdzv-backend c10d torchrun numbers the nodes itself")
    assert made.notes[1].startswith("--nnodes 1:4: an LWS group does not change its size")


@pytest.mark.parametrize(("index", "hosts"), [(0, "true"), (1, "false")])
@pytest.mark.parametrize(
    ("given", "left", "conf"),
    [
        ("--rdzv-conf timeout=900 --rdzv-id a", "--rdzv-id a", "timeout=900,"),
        ("--rdzv_conf=timeout=900,read_timeout=9 --rdzv-id a", "--rdzv-id a", "timeout=900,read_timeout=9,"),
        ("--rdzv-endpoint {leader}:1234 --rdzv-id a", "--rdzv-endpoint my-lws-0.my-lws.default:1234 --rdzv-id a", ""),
        ("--rdzv-endpoint pod-0 --rdzv-id a", "--rdzv-endpoint pod-0 --rdzv-id a", ""),
    ],
)
def test_who_hosts_the_store_is_said_beside_what_the_user_says_of_it(
    given: str, left: str, conf: str, index: int, hosts: str
) -> None:
    endpoint = "" if "--rdzv-endpoint" in given else "--rdzv-endpoint 10.0.0.10:29500 "
    made = command(f"torchrun --rdzv-backend c10d --nnodes 2 --local-addr a {given} t.py --rdzv-conf x", index, gpus=0)
    assert made == (
        f"torchrun {endpoint}--rdzv-conf {conf}is_host={hosts} --rdzv-backend c10d --nnodes 2 --local-addr a {left}"
        " t.py --rdzv-conf x"
    )


def test_rendezvous_flags_of_the_user_are_kept() -> None:
    given = "--rdzv-backend c10d --rdzv-endpoint a:1 --rdzv-id job --rdzv-conf is_host=1 --local-addr b --nnodes 2"
    assert command(f"torchrun {given} t.py", gpus=0) == f"torchrun {given} t.py"
    etcd = "--rdzv-backend etcd-v2 --rdzv-endpoint etcd:2379"
    assert command(f"torchrun {etcd} t.py", gpus=0) == f"torchrun --nnodes 2 --rdzv-id blue {etcd} t.py"


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("line", "environ", "agreed"),
    [
        ("torchrun t.py", {}, ("port 29500",)),
        ("torchrun t.py --master-port 3", {}, ("port 29500",)),
        ("torchrun t.py", {"MASTER_PORT": "1234"}, ("port 1234",)),
        ("torchrun t.py", {"PET_MASTER_PORT": "1234"}, ("port 1234",)),
        ("torchrun --master-port 1234 t.py", {"MASTER_PORT": "5"}, ("port 1234",)),
        ("torchrun --rdzv-endpoint {leader_ip}:7 --master-port 1 t.py", {}, ("port 7",)),
        ("torchrun t.py", {"PET_RDZV_BACKEND": "c10d"}, ("port 29500",)),
        ("torchrun --rdzv-backend c10d --rdzv-endpoint {leader} t.py", {}, ("port 29400",)),
        ("torchrun --rdzv-backend c10d t.py", {"PET_RDZV_ID": "a"}, ("port 29500", "PET_RDZV_ID a")),
        ("torchrun --rdzv-backend etcd --rdzv-id b --rdzv-endpoint etcd:2379 t.py", {"PET_RDZV_ID": "a"}, ()),
    ],
)
def test_all_pods_must_agree_on_where_they_meet(
    line: str, environ: dict[str, str], agreed: tuple[str, ...], index: int
) -> None:
    assert plan(line, index, environ=environ).agreed == agreed


def test_alone_there_is_nothing_to_agree_on() -> None:
    assert plan("torchrun --master-port 1234 t.py", 0, 1).agreed == ()


@pytest.mark.parametrize("given", ["--master-addr trainer", "--rdzv-endpoint trainer:1"])
def test_a_name_that_may_be_the_leaders_too_is_kept_and_said(given: str) -> None:
    made = plan(f"torchrun {given} t.py")
    assert made.main is not None
    assert f" {given} t.py" in " ".join(made.main.argv)
    assert made.notes == (
        f"{given} is kept, but the leader's name is my-lws-0.my-lws.default: all pods must get there",
    )


@pytest.mark.parametrize(
    ("given", "ip"),
    [
        ("--master-addr {leader}", "10.0.0.10"),
        ("--master-addr {leader_ip}", "10.0.0.10"),
        ("--master-addr pod-0", "10.0.0.10"),
        ("--rdzv-endpoint my-lws-0.my-lws.default.svc.cluster.local:1", "10.0.0.10"),
        ("--master-addr [fd00::1]", "fd00::1"),
        ("--rdzv-endpoint [fd00:0::1]:1", "fd00::1"),
        ("--rdzv-endpoint fd00::1:29400", "fd00::1"),
        ("--master-addr 127.0.0.1", "127.0.0.1"),
    ],
)
def test_the_leaders_names_and_addresses_are_kept_in_silence(given: str, ip: str) -> None:
    assert plan(f"torchrun {given} t.py", 0, leader_ip=ip).notes == ()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("torchrun --nnodes 3 t.py", "--nnodes is 3, but the group's size is 2"),
        ("torchrun --nnodes 3:4 t.py", "--nnodes is 3:4, but the group's size is 2"),
        (
            "torchrun --nnodes 1:4 t.py",
            "--nnodes is 1:4, but the group's size is 2: a static rendezvous waits for 4 nodes",
        ),
        ("torchrun --nnodes two t.py", "--nnodes is 'two'"),
        ("torchrun --nnodes 1:2:3 t.py", "--nnodes is '1:2:3'"),
        ("torchrun --node-rank 0 t.py", "--node-rank is 0, but this pod is index 1 of the group"),
        ("torchrun --standalone t.py", "--standalone in a group of 2: each pod would be a job of its own"),
        (
            "torchrun --master-addr 127.0.0.1 t.py",
            "--master-addr is 127.0.0.1: in a group of 2 each pod would meet itself only",
        ),
        (
            "torchrun --rdzv-backend c10d --rdzv-endpoint localhost:0 t.py",
            "--rdzv-endpoint is localhost:0: in a group of 2 each pod would meet itself only",
        ),
        (
            "torchrun --master-addr 10.9.9.9 t.py",
            "--master-addr is 10.9.9.9, but the group's leader is my-lws-0.my-lws.default (10.0.0.10)",
        ),
        (
            "torchrun --rdzv-endpoint fd00::10:29400 t.py",
            "--rdzv-endpoint is fd00::10:29400, but the group's leader is my-lws-0.my-lws.default (10.0.0.10)",
        ),
        (
            "torchrun --rdzv-backend c10d --rdzv-endpoint 10.9.9.9:1 --rdzv-conf timeout=9 t.py",
            "--rdzv-endpoint is 10.9.9.9:1, but the group's leader is my-lws-0.my-lws.default (10.0.0.10)",
        ),
        (
            "torchrun --master-addr $LWS_LEADER_ADDRESS t.py",
            "--master-addr is '$LWS_LEADER_ADDRESS': it looks like a variable that nobody expanded",
        ),
        (
            "torchrun --rdzv-backend etcd --rdzv-endpoint ${ETCD}:2379 t.py",
            "--rdzv-endpoint is '${ETCD}:2379': it looks like a variable that nobody expanded",
        ),
        ("torchrun --rdzv-endpoint 10.0.0.10 t.py", "--rdzv-endpoint is '10.0.0.10'"),
        ("torchrun --rdzv-endpoint fd00::x:1 t.py", "--rdzv-endpoint is 'fd00::x:1'"),
        ("torchrun --master-port $PORT t.py", "--master-port is '$PORT'"),
        ("torchrun --master-port 9470 t.py", "--master-port: port 9470 is lwsrun's own"),
        (
            "torchrun --rdzv-backend c10d --rdzv-endpoint {leader}:9470 t.py",
            "--rdzv-endpoint: port 9470 is lwsrun's own",
        ),
        ("torchrun --nnodes", "--nnodes has no value"),
        ("torchrun --nnodes --standalone t.py", "--nnodes has no value"),
        ("torchrun --rdzv 3 t.py", "--rdzv is ambiguous"),
    ],
)
def test_what_cannot_form_the_group_is_refused(line: str, found: str) -> None:
    assert refusal(line).splitlines()[0] == found


def test_more_nodes_than_a_group_of_one_are_refused() -> None:
    assert refusal("torchrun --nnodes 2 t.py", index=0, size=1).startswith("--nnodes is 2, but the group's size is 1")


def test_an_excluded_leader_is_refused() -> None:
    text = refusal("torchrun t.py", options=Options(leader_excluded=True))
    assert text.startswith("--leader-excluded: torchrun needs the leader")


def test_who_names_torchrun_must_start_it() -> None:
    text = refusal("python3 t.py", options=Options(backend="torchrun"))
    assert text.startswith("--backend torchrun, but no torchrun was found in: python3 t.py")


@pytest.mark.parametrize("kind", [None, Kind.JOB, Kind.SERVER])
def test_torchrun_is_a_job_unless_it_is_said_to_serve_and_ends_its_processes_itself(kind: Kind | None) -> None:
    made = plan("torchrun t.py", options=Options(kind=kind))
    assert made.kind == (kind or Kind.JOB)
    assert made.main is not None
    assert made.main == Main(made.main.argv, made.kind, asked_alone=True)


def test_torchruns_own_patience_fits_ours_unless_the_user_says_otherwise() -> None:
    assert [(v.name, v.value) for v in plan("torchrun t.py", options=Options(answering=40)).env] == [(GRACE, "40")]
    assert plan("torchrun --shutdown-timeout 5 t.py").env == ()
    assert plan("torchrun t.py", environ={GRACE: "5"}).env == ()
    assert isinstance(plan("torchrun t.py").env[0], EnvVar)


def test_every_flag_that_was_added_is_told_with_its_reason() -> None:
    assert plan("torchrun t.py").decisions == (
        "--nnodes 2: the group's size",
        "--node-rank 1: this pod's index",
        "--master-addr 10.0.0.10: the leader's address, as an IP",
        "--master-port 29500: on the leader; torchrun's default",
        "--nproc-per-node 8: a process for each GPU of this node (NVML)",
    )


def test_help_is_left_alone() -> None:
    assert command("torchrun --help") == "torchrun --help"


# --- where torchrun's options end: tests/engines/test_real_torchrun.py asks torchrun itself ---


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("t.py --nnodes 4", {}),
        ("-- t.py --nnodes 4", {}),
        ("--nnodes 2 -- t.py --nnodes 4", {"nnodes": "2"}),
        ("-m train --nnodes 4", {"module": ""}),
        ("--nnodes 2 -m train --node-rank 4", {"nnodes": "2", "module": ""}),
        ("-r3 -t 3 --nnodes=2 t.py", {"redirects": "3", "tee": "3", "nnodes": "2"}),
        ("--nnodes 2 --nnodes=4 t.py", {"nnodes": "4"}),
        ("--max-restarts -1 t.py", {"max-restarts": "-1"}),
        ("--log-dir - t.py", {"log-dir": "-"}),
        ("--st spawn t.py", None),
        ("--stan t.py", {"standalone": ""}),
        ("--role= t.py --nnodes 4", {"role": ""}),
    ],
)
def test_options_are_read_up_to_the_script(line: str, values: dict[str, str] | None) -> None:
    if values is None:
        with pytest.raises(ConfigError, match="--st is ambiguous"):
            read_options(line.split())
    else:
        assert read_options(line.split()).values == values


def test_behind_an_unknown_option_nothing_is_guessed_and_it_is_said() -> None:
    made = plan("torchrun --nnodes 2 --frobnicate 4 --node-rank 0 t.py")
    assert made.notes[0].startswith("--frobnicate is no option of torchrun that lwsrun knows")
    assert made.main is not None
    assert made.main.argv[1:5] == ("--node-rank", "1", "--master-addr", "10.0.0.10")


def test_use_env_belongs_to_the_old_launcher_alone() -> None:
    assert read_options(["--use-env", "t.py"]).unknown == "--use-env"
    assert read_options(["--use_env", "t.py"], legacy=True).values == {"use-env": ""}
