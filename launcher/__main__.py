"""The entry point. Signals are blocked before anything else is imported, so that none is lost during start-up."""

import signal

# A blocked signal stays pending, also for PID 1 and also with the default disposition (kernel/signal.c, sig_ignored).
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def main() -> None:
    from launcher.cli import run

    run()


if __name__ == "__main__":
    main()
