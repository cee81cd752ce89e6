"""What the engine's environment holds: a variable that would break it is not handed on, unless --env says so."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import free_port, start

SERVICE = "tcp://10.96.0.7:8000"  # what Kubernetes sets for a Service named vllm


@pytest.mark.parametrize(("option", "seen"), [((), "none"), (("--env=VLLM_PORT=5000",), "5000")])
def test_a_services_address_does_not_reach_vllm_but_a_port_given_by_env_does(
    option: tuple[str, ...], seen: str, tmp_path: Path
) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho port=${VLLM_PORT-none}\n")
    program.chmod(0o755)
    done = start(
        "start", "--size=1", f"--port={free_port()}", f"--termination-log={tmp_path}/log", *option, "--",
        str(program), "serve", "m", VLLM_PORT=SERVICE,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"port={seen}"
    dropped = f"VLLM_PORT is not handed on: {SERVICE} is the address of a Service named vllm" in done.stderr
    assert dropped is not bool(option)


def test_an_address_in_vllm_host_ip_that_this_pod_has_not_got_is_told(tmp_path: Path) -> None:
    engine = tmp_path / "vllm"
    engine.write_text("#!/bin/sh\n")
    engine.chmod(0o755)
    log = f"--termination-log={tmp_path}/log"
    alone = ("start", "--size=1", f"--port={free_port()}", log, "--", str(engine), "serve", "m")
    note = "WARNING: VLLM_HOST_IP is 192.0.2.77, which this pod has not got: "
    assert note in start(*alone, VLLM_HOST_IP="192.0.2.77").stderr
    assert "WARNING: VLLM_HOST_IP" not in start(*alone, VLLM_HOST_IP="127.0.0.1").stderr
