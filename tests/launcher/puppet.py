"""An engine on strings, for tests: obeys the lines that come on stdin, and tells on stdout what it did.

run                 make a child that stays
orphan / daemon     make a grandchild whose parent ends: it stays / in a session of its own
flash N             make N grandchildren that end at once, their parents too
exit N / die N      end with code N / of signal N
Signals that it gets are told as they come: "signal N".
"""

import os
import signal
import sys

TOLD = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}


def stay() -> None:
    for number in TOLD:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)
    while True:
        signal.pause()


def double_fork(stays: bool, session: bool) -> None:
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            if session:
                os.setsid()
            if stays:
                stay()
        os._exit(0)
    os.waitpid(pid, 0)


def obey(line: str) -> None:
    # A child must not tell of a signal with our handlers before it has its own dispositions.
    signal.pthread_sigmask(signal.SIG_BLOCK, TOLD)
    word, _, argument = line.partition(" ")
    if word == "run" and os.fork() == 0:
        stay()
    elif word in ("orphan", "daemon"):
        double_fork(stays=True, session=word == "daemon")
    elif word == "flash":
        for _ in range(int(argument)):
            double_fork(stays=False, session=False)
    elif word == "exit":
        os._exit(int(argument))
    elif word == "die":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)
        if int(argument) in TOLD:
            signal.signal(int(argument), signal.SIG_DFL)
        os.kill(os.getpid(), int(argument))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TOLD)
    tell("done " + line)


def tell(text: str) -> None:
    os.write(1, (text + "\n").encode())


def main() -> None:
    for number in TOLD:
        signal.signal(number, lambda number, _: tell(f"signal {number}"))
    tell("up")
    for line in sys.stdin:
        obey(line.strip())
    while True:
        signal.pause()


main()
