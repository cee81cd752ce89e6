"""mpirun's remote agent: hands the daemon's command to the leader's launcher and ends as the daemon does.

Usage, in plm_rsh_agent: python -I -S agent.py SOCKET; mpirun puts the host and the command behind it. It imports
nothing of lwsrun's: one runs for each worker, all at the same moment. The protocol is in launch.py.
"""

import os
import socket
import sys

FAILED = 255  # as ssh says that it did not come to run the command


def main(path: str, host: str, command: str) -> int:
    try:
        with socket.socket(socket.AF_UNIX) as launcher:
            launcher.connect(path)
            launcher.sendall(os.fsencode(f"{host}\0{command}"))
            launcher.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := launcher.recv(65536):
                answer += chunk
    except OSError as error:
        print(f"lwsrun-agent: the launcher of this pod cannot be asked: {error}", file=sys.stderr)
        return FAILED
    code, _, words = answer.decode(errors="replace").partition(" ")
    if words:
        print(f"lwsrun-agent: {host}: {words}", file=sys.stderr)
    return int(code) if code.isdecimal() else FAILED


if __name__ == "__main__":
    # Joined by blanks, as ssh(1) does it: what needs quotes for the other side's shell has them.
    sys.exit(main(sys.argv[1], sys.argv[2], " ".join(sys.argv[3:])))
