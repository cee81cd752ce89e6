"""What a kubelet sees of a pod, with the thresholds that it really has: ready, started, alive, and why not."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from conftest import LWSRUN, free_port, launched, start, wait_until
from kubelet import Kubelet, Probe, Result, execute, from_manifest, http_get
from loopback import Pod, Pods

from backends.plan import Health
from launcher import health
from launcher.health import EngineHealth
from launcher.probe import ask

ENGINE = Path(__file__).with_name("little_engine.py")
DOCUMENT = Path(__file__).parents[2] / "docs" / "probes.md"


class Engine:
    """The little engine's directory, and the command that a detector takes for vLLM's."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory, self.port = directory, free_port()
        program = directory / "vllm"
        program.write_text(f'#!/bin/sh\nshift\nexec {shlex.quote(sys.executable)} {shlex.quote(str(ENGINE))} "$@"\n')
        program.chmod(0o755)
        self.command = [str(program), "serve", "tiny", "--port", str(self.port)]
        self.environ = {"ENGINE_DIRECTORY": str(directory)}

    def says(self, name: str, value: object) -> None:
        file = self.directory / f"{name}.new"
        file.write_text(str(value))
        file.rename(self.directory / name)

    def told(self, name: str) -> str:
        file = self.directory / name
        return file.read_text() if file.exists() else ""


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path / "engine")


def blocks() -> list[dict[str, Any]]:
    """What docs/probes.md gives to paste, in its order."""
    return [yaml.safe_load(block.partition("```")[0]) for block in DOCUMENT.read_text().split("```yaml")[1:]]


# What kills still has to leave a busy machine the time to start a launcher.
FASTER = {"readinessProbe": 50, "startupProbe": 25, "livenessProbe": 4}
LEADER, WORKER, STARTUP, LEADER_READY, EXEC_PROBE, VLLM_EXEC, SGLANG_EXEC = blocks()


def probed(pod: Pod, manifest: dict[str, Any]) -> Kubelet:
    """A kubelet with the probes of the document, but faster."""
    probes = {
        name.removesuffix("Probe"): from_manifest(
            fields, http_get(pod.address, pod.port, fields["httpGet"]["path"]), FASTER[name]
        )
        for name, fields in manifest.items()
        if name.endswith("Probe")
    }
    return Kubelet(pod.process, **probes)


def says(kubelet: Kubelet, probe: str, text: str, limit: float = 30) -> None:
    """Wait until the last answer to this probe contains the text."""
    try:
        wait_until(lambda: text in kubelet.last(probe)[1], limit)
    except AssertionError:
        raise AssertionError(f"{probe} never said {text!r}, but: {kubelet.last(probe)}") from None


GENERIC = ("--backend=generic", "--drain-delay=2s")


def test_a_leader_is_ready_when_its_engine_serves_and_says_in_one_line_why_not(engine: Engine, tmp_path: Path) -> None:
    with Pods(tmp_path / "pods") as pods:
        leader = pods.start(0, *GENERIC, "--", *engine.command, **engine.environ)
        with probed(leader, LEADER | STARTUP) as kubelet:
            says(kubelet, "startup", "gathering: waiting for worker 1")
            # The worker's engine never listens: on this machine the leader's answers in its place.
            worker = pods.start(1, *GENERIC, "--", *engine.command, ENGINE_DIRECTORY="/")
            with probed(worker, WORKER) as workers:
                url = f"http://localhost:{engine.port}/health"
                says(kubelet, "startup", "loading")
                engine.says("status", 503)
                says(kubelet, "startup", f"engine: GET {url}: 503")
                wait_until(lambda: workers.ready)  # its part accepts connections, and the group is complete
                assert not kubelet.started
                assert not kubelet.ready
                engine.says("status", 200)
                wait_until(lambda: kubelet.started and kubelet.ready)
                engine.says("status", 503)
                says(kubelet, "readiness", f"engine: GET {url}: 503")
                wait_until(lambda: not kubelet.ready)
                assert http_get(leader.address, leader.port, "/startupz")(5) == (True, "ok")  # it stays
                engine.says("status", 200)
                wait_until(lambda: kubelet.ready)
                leader.process.send_signal(signal.SIGTERM)
                says(kubelet, "readiness", "draining")
                assert (leader.wait(), worker.wait()) == (0, 0)
    assert kubelet.killed == workers.killed == ""


@pytest.mark.parametrize("ready_when", ["launcher", "group"])
def test_by_ready_when_a_pod_is_ready_before_its_engine_serves(ready_when: str, engine: Engine, tmp_path: Path) -> None:
    early = f"--ready-when={ready_when}"
    with Pods(tmp_path / "pods") as pods:
        leader = pods.start(0, *GENERIC, early, "--", *engine.command, **engine.environ)
        with probed(leader, LEADER_READY if ready_when == "launcher" else LEADER) as kubelet:
            if ready_when == "launcher":
                wait_until(lambda: kubelet.ready)
                assert leader.group()["phase"] == "gathering"
            else:
                says(kubelet, "readiness", "gathering: waiting for worker 1")
            worker = pods.start(1, *GENERIC, "--", *engine.command, LWSRUN_READY_WHEN=ready_when, ENGINE_DIRECTORY="/")
            wait_until(lambda: kubelet.ready)
            with probed(worker, WORKER) as workers:
                wait_until(lambda: workers.ready)
            leader.says("running: ")
            leader.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not kubelet.ready)
            leader.wait()


def test_alone_probes_are_answered_while_the_engine_loads(engine: Engine) -> None:
    port = free_port()
    ask = {name: http_get("127.0.0.1", port, path) for name, path in (("live", "/livez"), ("ready", "/readyz"))}
    with launched(f"--port={port}", "--", *engine.command, pid_1=False, env=engine.environ) as pod:
        wait_until(lambda: ask["live"](5)[0])
        wait_until(lambda: ask["ready"](5)[1] == "loading")
        engine.says("status", 200)
        wait_until(lambda: ask["ready"](5) == (True, "ok"))
        pod.send(signal.SIGTERM)
        pod.wait()


def an_engine_that_is_not_well(engine: Engine, sabotage: str = "") -> None:
    engine.says("status", 503)
    port = free_port()
    with launched(f"--port={port}", "--", *engine.command, pid_1=False, env=engine.environ, sabotage=sabotage):
        answer = (False, "")

        def settled() -> bool:
            nonlocal answer
            answer = http_get("127.0.0.1", port, "/readyz")(5)
            return answer[0] or answer[1].endswith("503")

        wait_until(settled)
        assert answer == (False, f"engine: GET http://localhost:{engine.port}/health: 503")


def test_a_pod_is_not_ready_while_its_engine_is_not_well(engine: Engine) -> None:
    an_engine_that_is_not_well(engine)


def test_without_the_engines_health_that_test_fails(engine: Engine) -> None:
    with pytest.raises(AssertionError, match="True, 'ok'"):
        an_engine_that_is_not_well(engine, sabotage="engine_health")


def test_alone_probes_are_answered_while_services_start(engine: Engine, tmp_path: Path) -> None:
    # A Ray that never gets ready stands for one that takes long.
    ray = tmp_path / "ray"
    ray.write_text("#!/bin/sh\nsleep 600\n")
    ray.chmod(0o755)
    port = free_port()
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    given = ("--backend=ray", f"--ray-port={free_port()}", f"--port={port}")
    with launched(*given, "--", "true", pid_1=False, ready=False, env=environ):
        wait_until(lambda: http_get("127.0.0.1", port, "/readyz")(5)[1] not in ("", "ok"))
        wait_until(lambda: http_get("127.0.0.1", port, "/livez")(5) == (True, "ok"))


def test_alone_probes_are_answered_during_a_smoke_run(tmp_path: Path) -> None:
    # It finds PyTorch, and then measures for long.
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || sleep 600\n')
    python.chmod(0o755)
    port = free_port()
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with launched("--smoke", f"--port={port}", "--", "true", pid_1=False, ready=False, env=environ):
        wait_until(lambda: http_get("127.0.0.1", port, "/readyz")(5) == (False, "smoke"))
        assert http_get("127.0.0.1", port, "/livez")(5) == (True, "ok")


def test_with_exec_the_engines_own_probe_is_the_one_to_use(engine: Engine) -> None:
    port = free_port()
    engine.says("status", 200)
    with launched("--exec", f"--port={port}", "--", *engine.command, pid_1=False, env=engine.environ) as pod:
        fields = VLLM_EXEC["readinessProbe"]
        own = from_manifest(fields, http_get("127.0.0.1", engine.port, fields["httpGet"]["path"]), faster=50)
        with Kubelet(pod.process, readiness=own) as kubelet:
            wait_until(lambda: kubelet.ready)
        done = start("probe", "ready", f"--port={port}")
        assert done.returncode == 1
        assert "no launcher answers at 127.0.0.1 and ::1 port" in done.stdout
        assert "with --exec there is none" in done.stdout


def test_a_health_url_is_asked_where_the_engine_is_not_known(engine: Engine) -> None:
    engine.says("status", 503)
    port = free_port()
    url = f"--health-url=http://{{pod_ip}}:{engine.port}/fine"
    command = [sys.executable, str(ENGINE), "--port", str(engine.port)]
    given = (f"--port={port}", "--pod-ip=127.0.0.1", "--kind=server", url)
    with launched(*given, "--", *command, pid_1=False, env=engine.environ):
        ready = http_get("127.0.0.1", port, "/readyz")
        wait_until(lambda: ready(5)[1] == f"engine: GET http://127.0.0.1:{engine.port}/fine: 503")
        engine.says("status", 204)
        wait_until(lambda: ready(5)[0])
        assert set(engine.told("asked").split()) == {"/fine"}


def test_a_frozen_launcher_fails_liveness_and_its_container_is_killed(engine: Engine, tmp_path: Path) -> None:
    with Pods(tmp_path / "pods") as pods:
        pod = pods.start(0, "--", "sleep", "600", size=1)
        pod.says("running: ")
        alive = Probe(http_get(pod.address, pod.port, "/livez"), period=0.1, timeout=0.3, failure_threshold=3)
        patient = Probe(http_get(pod.address, pod.port, "/livez"), period=0.1, timeout=10.0)
        wait_until(lambda: patient.action(10)[0])
        with Kubelet(pod.process, liveness=alive, grace=0.2) as kubelet:
            pod.process.send_signal(signal.SIGSTOP)
            wait_until(lambda: kubelet.killed)
            assert pod.wait() == -signal.SIGKILL
            assert [passed for passed, _ in kubelet.told["liveness"][-3:]] == [False] * 3


@contextmanager
def serving(engine: Engine) -> Iterator[None]:
    with subprocess.Popen(engine.command, env={**os.environ, **engine.environ}, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()


def test_a_slow_engine_has_one_request_of_ours_however_often_we_are_asked(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "LATE", 0.3)
    engine.says("status", 200)
    engine.says("delay", 1.5)

    async def ask() -> None:
        asked = EngineHealth(Health(f"http://127.0.0.1:{engine.port}/health"))
        watching = asyncio.create_task(asked.watch())
        seen = set()
        while not asked.first.is_set():
            seen.add(asked.why_not())
            await asyncio.sleep(0.005)
        assert any(str(why).endswith("no answer for 0 s") for why in seen), seen
        for _ in range(400):
            asked.wanted()
            await asyncio.sleep(0.005)
        engine.says("delay", 0)
        while asked.why_not() is not None:
            await asyncio.sleep(0.01)
        watching.cancel()
        await asyncio.wait([watching])

    with serving(engine):
        asyncio.run(asyncio.wait_for(ask(), 30))
    assert engine.told("most") == "1"
    assert 2 <= len(engine.told("asked").split()) < 10


def test_an_engine_that_does_not_know_ready_is_asked_for_its_health(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.says("status", 404)

    async def ask() -> None:
        at = f"http://127.0.0.1:{engine.port}"
        asked = EngineHealth(Health(f"{at}/ready", otherwise=f"{at}/health"))
        watching = asyncio.create_task(asked.watch())
        while "404" not in str(asked.why_not()):
            await asyncio.sleep(0.01)
        assert asked.why_not() == f"GET {at}/health: 404"
        engine.says("status", 200)
        await asked.first.wait()
        watching.cancel()
        await asyncio.wait([watching])

    with serving(engine):
        asyncio.run(asyncio.wait_for(ask(), 30))
    assert engine.told("asked").split()[:2] == ["/ready", "/health"]
    assert "/ready" not in engine.told("asked").split()[1:]


# ---------------------------------------------------------------------- lwsrun probe


def test_exec_probes_say_what_the_launcher_says(engine: Engine, tmp_path: Path) -> None:
    with Pods(tmp_path / "pods") as pods:
        pod = pods.start(0, "--", *engine.command, size=1, **engine.environ)
        pod.says("running: ")
        place = {"LWSRUN_PORT": str(pod.port), "LWSRUN_LISTEN": pod.address}
        probes = {name: execute(*LWSRUN, "probe", name, **place) for name in ("live", "ready", "startup")}
        assert probes["live"](20) == (True, "ok")
        for name in ("ready", "startup"):
            assert probes[name](20) == (False, "loading")
        engine.says("status", 200)
        slow = {"period": 0.2, "timeout": 20.0}
        with Kubelet(
            pod.process,
            startup=Probe(probes["startup"], failure_threshold=99, **slow),
            readiness=Probe(probes["ready"], **slow),
        ) as kubelet:
            wait_until(lambda: kubelet.ready, 40)


def test_an_exec_probe_loads_next_to_nothing() -> None:
    script = (
        "import sys; sys.argv = ['lwsrun', 'probe', 'live', '--port', '1']\n"
        "from launcher.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as left: print(left.code)\n"
        "print([name for name in ('aiohttp', 'asyncio', 'click', 'psutil', 'backends') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    said, code, loaded = done.stdout.splitlines()
    assert said.startswith("no launcher answers at 127.0.0.1 and ::1 port 1: connection refused")
    assert (code, loaded) == ("1", "[]")


def test_whoever_answers_an_exec_probe_with_nothing_is_no_launcher_that_is_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.0 \r\n\r\n")

        answering = threading.Thread(target=answer)
        answering.start()
        assert ask("/livez", "127.0.0.1", server.getsockname()[1], 10) == (False, "an empty answer")
        answering.join()


@pytest.mark.parametrize("arguments", [("probe",), ("probe", "well"), ("probe", "live", "--port", "x")])
def test_a_wrong_exec_probe_fails_and_says_how_to_write_it(arguments: tuple[str, ...]) -> None:
    done = start(*arguments)
    assert done.returncode == 1
    assert "usage: lwsrun probe" in done.stderr


def test_probe_is_among_the_commands_and_has_a_help() -> None:
    assert "probe" in start("--help").stdout
    done = start("probe", "--help")
    assert done.returncode == 0
    assert "LWSRUN_PORT" in done.stdout


# ---------------------------------------------------------------------- what the document gives to paste


FIELDS = {"periodSeconds", "timeoutSeconds", "failureThreshold"}


@pytest.mark.parametrize("manifest", blocks(), ids=lambda manifest: "+".join(manifest))
def test_a_block_of_the_document_asks_what_is_answered_and_waits_no_longer_than_its_period(
    manifest: dict[str, Any],
) -> None:
    probes = {name: fields for name, fields in manifest.items() if name.endswith("Probe")}
    assert probes
    for name, fields in probes.items():
        assert fields.keys() - FIELDS in ({"httpGet"}, {"exec"})
        assert fields["timeoutSeconds"] <= fields["periodSeconds"] or name == "startupProbe"
        if "exec" in fields:
            assert fields["exec"]["command"] == ["lwsrun", "probe", "ready"]
        elif manifest in (VLLM_EXEC, SGLANG_EXEC):
            assert fields["httpGet"]["path"] == "/health"
        else:
            paths = {"readinessProbe": "/readyz", "livenessProbe": "/livez", "startupProbe": "/startupz"}
            assert fields["httpGet"] == {"path": paths[name], "port": "lwsrun" if "ports" in manifest else 9470}


# ---------------------------------------------------------------------- the stand-in itself


@pytest.mark.parametrize(
    ("outcomes", "results"),
    [
        ("+", "+"),
        ("---", "??-"),
        ("+--+--", "+++" + "+++"),
        ("+---", "+++-"),
        ("---+", "??-+"),
    ],
)
def test_a_result_changes_when_its_threshold_is_reached(outcomes: str, results: str) -> None:
    result = Result(Probe(lambda _: (True, ""), failure_threshold=3), passed=None)
    seen = ""
    for outcome in outcomes:
        result.take(outcome == "+")
        seen += {None: "?", True: "+", False: "-"}[result.passed]
    assert seen == results
