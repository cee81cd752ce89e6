"""One pod: enters its namespaces, then becomes its PID 1, the launcher.

`python -m launcher.simulate.pod SPEC INDEX GENERATION CONNECTED`, the last 0 where a partition goes on, else 1.
"""

from __future__ import annotations

import signal

# From here on a SIGTERM stays pending, across exec too, until the launcher takes it.
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

import os
import sys
from pathlib import Path

from launcher import exits, kernel, ourselves
from launcher.simulate import namespaces, root_fs
from launcher.simulate.spec import Spec, load


def main(spec_file: str, index: int, generation: int, connected: int) -> None:
    kernel.die_with_parent()
    spec = load(Path(spec_file).read_text())
    if not spec.isolated:
        record(spec, index, generation, os.getpid())
        become_launcher(spec, index, generation)
    namespaces.enter_pod(spec, index, generation, bool(connected))
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kernel.die_with_parent()
            os.close(go)
            os.read(ready, 1)  # ends when our pid is written down
            if spec.root_fs is not None:
                root_fs.enter_root(spec, index, generation)
            namespaces.furnish_pod(spec, index, generation)
            become_launcher(spec, index, generation)
        except OSError as error:
            print(f"the pod cannot be set up: {error}", file=sys.stderr)
        os._exit(exits.ENDED_UNASKED)
    record(spec, index, generation, pid)
    os.close(go)
    # PID 1's signals come straight from the simulation, as from a kubelet; this process only reports its end.
    _, status = os.waitpid(pid, 0)
    os._exit(exits.of_status(status))


def record(spec: Spec, index: int, generation: int, pid: int) -> None:
    (spec.directory_of(index, generation) / "pid").write_text(str(pid))


def become_launcher(spec: Spec, index: int, generation: int) -> None:
    """exec: the pod's environment as LWS's webhook makes it, and the user's command behind `lwsrun start`."""
    directory = spec.directory_of(index, generation)
    given = spec.environ if spec.root_fs is None else root_fs.environ_of(spec)
    environ = {
        "LWS_LEADER_ADDRESS": spec.leader_address(generation),
        "LWS_GROUP_SIZE": str(spec.size),
        "LWS_WORKER_INDEX": str(index),
        **{name: value for name, value in given.items() if not name.startswith("LWS_")},
        "HOSTNAME": spec.host(index),
        "LWSRUN_TERMINATION_LOG": str(directory / "termination-log"),
        "LWSRUN_PORT": str(spec.port),
    }
    if spec.isolated:
        environ["TMPDIR"] = "/tmp"
    else:
        environ.update(LWSRUN_POD_IP=spec.ip(index, generation), LWSRUN_LISTEN=spec.ip(index, generation))
    command = ["--", *spec.command_of(index)] if spec.verb == "start" else []
    arguments = [spec.verb, *spec.start_options, *command]
    if spec.root_fs is not None:
        root_fs.become_lwsrun(arguments, spec, directory, environ)
    argv = ourselves.command("launcher", *arguments)
    os.execve(sys.executable, argv, environ)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
