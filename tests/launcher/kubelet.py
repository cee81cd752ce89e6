"""A kubelet's prober, for tests: asks a pod by the fields of its probes and does what they lead to.

The rules are those of pkg/kubelet/prober/worker.go and
https://kubernetes.io/docs/tasks/configure-pod-container/configure-liveness-readiness-startup-probes/
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Action = Callable[[float], tuple[bool, str]]  # timeout in seconds -> passed, what was answered


@dataclass
class Probe:
    """The fields of a probe as in a pod's manifest, with Kubernetes' defaults; times in seconds."""

    action: Action
    initial_delay: float = 0.0
    period: float = 10.0
    timeout: float = 1.0
    failure_threshold: int = 3
    success_threshold: int = 1


def from_manifest(fields: Mapping[str, Any], action: Action, faster: float) -> Probe:
    """The probe of a manifest, so many times faster; but nothing is given less than 2 s to answer."""
    return Probe(
        action,
        initial_delay=fields.get("initialDelaySeconds", 0) / faster,
        period=fields.get("periodSeconds", 10) / faster,
        timeout=max(fields.get("timeoutSeconds", 1), 2),
        failure_threshold=fields.get("failureThreshold", 3),
        success_threshold=fields.get("successThreshold", 1),
    )


@dataclass
class Result:
    """What a probe says by its thresholds, fed with one outcome after the other."""

    probe: Probe
    passed: bool | None
    run: int = 0
    last: bool | None = None

    def take(self, passed: bool) -> bool:
        """Whether the outcome made, or confirmed, a result; else a threshold is not reached yet."""
        self.run = self.run + 1 if passed is self.last else 1
        self.last = passed
        if self.run < (self.probe.success_threshold if passed else self.probe.failure_threshold):
            return False
        self.passed = passed
        return True


@dataclass
class Kubelet:
    """Probes one container until it is closed. Liveness and readiness wait for the startup probe, where there is one;
    a failure of that or of liveness kills the container: TERM first, KILL after the grace.
    """

    process: subprocess.Popen[bytes]
    startup: Probe | None = None
    liveness: Probe | None = None
    readiness: Probe | None = None
    grace: float = 30.0
    killed: str = ""  # the answer that made it
    ready: bool = False
    started: bool = False
    told: dict[str, list[tuple[bool, str]]] = field(default_factory=dict)  # every outcome, by the probe's name

    def __post_init__(self) -> None:
        self.ready, self.started = self.readiness is None, self.startup is None
        self._over = threading.Event()
        self._born = time.monotonic()
        probes = {"startup": self.startup, "liveness": self.liveness, "readiness": self.readiness}
        self._threads = [
            threading.Thread(target=self._work, args=(name, probe)) for name, probe in probes.items() if probe
        ]

    def __enter__(self) -> Kubelet:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def last(self, name: str) -> tuple[bool, str]:
        return self.told.get(name, [(False, "not asked yet")])[-1]

    def _work(self, name: str, probe: Probe) -> None:
        result = Result(probe, passed=name == "liveness")
        due = time.monotonic()
        while not self._over.wait(max(due - time.monotonic(), 0)) and self._ask(name, probe, result):
            due = max(due + probe.period, time.monotonic())  # a ticker of Go drops what nobody took

    def _ask(self, name: str, probe: Probe, result: Result) -> bool:
        """One turn; False when this probe is done for good."""
        if self.process.poll() is not None or self.killed:
            self.ready = False
            return False
        if time.monotonic() - self._born < probe.initial_delay or (name != "startup" and not self.started):
            return True
        if name == "startup" and self.started:
            return False
        passed, answer = probe.action(probe.timeout)
        self.told.setdefault(name, []).append((passed, answer))
        if not result.take(passed):
            return True
        if name == "readiness":
            self.ready = passed
        elif name == "startup" and passed:
            self.started = True
        elif not passed:
            self.killed = answer
            self._kill()
        return True

    def _kill(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(self.grace)
        except subprocess.TimeoutExpired:
            self.process.kill()


def http_get(host: str, port: int, path: str) -> Action:
    def ask(timeout: float) -> tuple[bool, str]:
        try:
            with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=timeout) as answer:
                return 200 <= answer.status < 400, answer.read().decode().strip()
        except urllib.error.HTTPError as error:
            with error:
                return False, error.read().decode().strip()
        except OSError as error:
            return False, str(getattr(error, "reason", None) or error)

    return ask


def execute(*argv: str, **environ: str) -> Action:
    def ask(timeout: float) -> tuple[bool, str]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                argv, capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **environ}
            )
            return done.returncode == 0, done.stdout.strip()
        return False, "timed out"

    return ask
