"""How a worker finds its leader by name: in a network of its own, with a hosts file or with name servers.

Each scenario with a twin in tests/sabotage must fail without its mechanism.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import LWSRUN, wait_until
from loopback import Pod, Pods


@pytest.fixture
def pods(tmp_path: Path) -> Iterator[Pods]:
    with Pods(tmp_path / "pods") as made:
        yield made


@dataclass
class Network:
    """A network of its own, with a hosts file that can be rewritten, for one leader and one worker."""

    pods: Pods
    hosts: Path
    leader: Path
    worker: Path
    address: str = "sim-0.sim.default"

    def name(self, *addresses: str) -> None:
        self.hosts.write_text("".join(f"{address} {self.address}\n" for address in addresses))

    def start(
        self, listen: str = "--listen=127.0.0.1", leader_after: str = "true", first: Sequence[str] = ()
    ) -> tuple[Pod, Pod]:
        """After the shell commands of first the worker; the leader when leader_after has ended. (worker, leader)"""
        same = f"--leader-address={self.address} --size=2 --report-every=0.3s --port={self.pods.port}"
        lines = [
            "set -e",
            "ip link set lo up; ip link add quiet type veth peer name nobody; ip link set nobody up",
            "ip addr add 10.9.0.1/24 dev quiet; ip link set quiet up",
            "ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev quiet",
            f"mount --bind {self.hosts} /etc/hosts",
            *first,
            f"{shlex.join(LWSRUN)} start {same} --index=1 --listen=127.0.0.2 -- true 2>{self.worker} &",
            leader_after,
            f"{shlex.join(LWSRUN)} start {same} --index=0 {listen} -- true 2>{self.leader}",
            "wait $!",
        ]
        own = ["--user", "--map-root-user"] if os.geteuid() else []
        shell = ["sh", "-c", "\n".join(lines)]
        process = self.pods.run(["unshare", *own, "--mount", "--net", "--pid", "--fork", "--kill-child", *shell])
        port = self.pods.port
        return Pod(process, self.worker, "127.0.0.2", port), Pod(process, self.leader, "127.0.0.1", port)


def network_of(pods: Pods) -> Network:
    files = [pods.directory / name for name in ("hosts", "leader", "worker")]
    for file in files:
        file.touch()
    return Network(pods, *files)


def a_name_that_changes(network: Network) -> None:
    """It is not there at first, then it is the address of a pod that has gone, then that of the leader."""
    go = network.pods.directory / "go"
    worker, _ = network.start(leader_after=f"until [ -e {go} ]; do sleep 0.1; done")
    worker.says("waiting . s for the leader at sim-0.sim.default port .*: its name does not resolve")
    network.name("127.0.0.9")
    worker.says("waiting . s for the leader at .*: 127.0.0.9: connection refused")
    network.name("127.0.0.1")
    go.touch()
    worker.says("joined the leader at 127.0.0.1")
    assert worker.wait() == 0


def a_name_with_a_dead_address(network: Network) -> None:
    """Packets to 10.9.0.2 vanish: that attempt is bounded, and the other address gets its turn each time."""
    network.name("10.9.0.2", "127.0.0.1")
    worker, _ = network.start(leader_after=f"until grep -q 'timed out' {network.worker}; do sleep 0.1; done")
    worker.says("waiting .*: (10.9.0.2: timed out; 127.0.0.1: connection refused|127.0.0.1: .*; 10.9.0.2: timed out)")
    assert worker.wait(60) == 0  # its attempts at the dead address take 5 s each
    assert "no answer yet" not in worker.log.partition("timed out")[2], (
        "an attempt's outcome is told until the next one"
    )


def both_families_of_which_only_ipv4_works(network: Network) -> None:
    network.name("::1", "127.0.0.1")
    worker, _ = network.start()
    worker.says("joined the leader at 127.0.0.1")
    assert worker.wait() == 0


def both_families_of_which_only_ipv6_works(network: Network) -> None:
    network.name("127.0.0.1", "::1")
    worker, _ = network.start("--listen=::1")
    worker.says("joined the leader at ::1")
    assert worker.wait() == 0


def ipv6_alone(network: Network) -> None:
    network.name("::1")
    worker, leader = network.start("--listen=::1")
    assert worker.wait() == 0
    assert "worker 1 joined from ::1" in leader.log


def a_name_that_was_denied_and_is_cached(network: Network) -> None:
    """A resolver between the pods and the cluster's authority goes on denying what it has been denied once."""
    directory = network.pods.directory
    records, dns, go = directory / "records", directory / "dns", directory / "go"
    records.touch()
    (directory / "resolv.conf").write_text(
        "nameserver 127.0.0.53\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    )
    servers = shlex.join([sys.executable, str(Path(__file__).with_name("caching_dns.py"))])
    worker, leader = network.start(
        leader_after=f"until [ -e {go} ]; do sleep 0.1; done",
        first=[
            f"mount --bind {directory}/resolv.conf /etc/resolv.conf",
            f"{servers} 127.0.0.52 127.0.0.53 {DENIED_FOR} {records} >{dns} 2>&1 &",
        ],
    )
    worker.says("waiting . s for the leader at .*: its name does not resolve: NXDOMAIN from 127.0.0.53")
    go.touch()
    leader.says("waiting for 1 workers")
    # The record comes when a denial has just been cached.
    denials = denied(dns)
    wait_until(lambda: len(denied(dns)) > len(denials))
    records.write_text("sim-0 127.0.0.1\n")
    before = worker.log
    worker.says("joined the leader at 127.0.0.1")
    joined, let_go = time.monotonic(), denied(dns)[-1]
    assert -0.1 < joined - let_go < 2.5, f"joined {joined - let_go:.1f} s after the denial had run out"
    assert "NXDOMAIN from 127.0.0.53" in worker.log.removeprefix(before), "it did not say why it still waits"
    assert worker.wait() == 0


DENIED_FOR = 4  # seconds; 30 in a cluster


def denied(dns: Path) -> list[float]:
    """Until when the leader's name was denied, each time that the cache asked."""
    return [
        float(at) for at in re.findall(r"denied sim-0.sim.default.svc.cluster.local. A+ until (\S+)", dns.read_text())
    ]


NAMES = [
    a_name_that_changes,
    a_name_with_a_dead_address,
    both_families_of_which_only_ipv4_works,
    both_families_of_which_only_ipv6_works,
    ipv6_alone,
    a_name_that_was_denied_and_is_cached,
]


@pytest.mark.parametrize("scenario", NAMES, ids=lambda scenario: scenario.__name__)
def test_a_worker_finds_the_leader_by(scenario: Callable[[Network], None], pods: Pods) -> None:
    scenario(network_of(pods))


@pytest.mark.parametrize(
    ("scenario", "off"),
    [
        (a_name_that_changes, "resolving_anew"),
        (both_families_of_which_only_ipv4_works, "every_address"),
        (a_name_with_a_dead_address, "every_address"),
        (a_name_that_was_denied_and_is_cached, "asking_soon"),
    ],
)
def test_without_its_mechanism_the_worker_does_not_find_the_leader(
    scenario: Callable[[Network], None],
    off: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pod.says, "__defaults__", (8.0,))
    monkeypatch.setattr(Pod.wait, "__defaults__", (15.0,))
    with Pods(tmp_path / "pods", off) as pods, pytest.raises((AssertionError, subprocess.TimeoutExpired)):
        scenario(network_of(pods))
