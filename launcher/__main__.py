"""The entry point. Signals are blocked before anything else is imported, so that none is lost during start-up."""

import signal
import sys

# A blocked signal stays pending, also for PID 1 and also with the default disposition (kernel/signal.c, sig_ignored).
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def main() -> None:
    if sys.argv[1:2] == ["probe"]:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        from launcher import probe

        sys.exit(probe.main(sys.argv[2:]))
    from launcher.cli import run

    run()


if __name__ == "__main__":
    main()
