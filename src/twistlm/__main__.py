"""The command line's entry, which imports nothing before it has arranged for being interrupted."""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


def main() -> int:
    """Run `twistlm.cli.main`; until it takes over, a signal ends the process in one line."""
    for number in WORDS:
        signal.signal(number, _leave)
    from twistlm.cli import main as run

    code = run()
    if code > 128:
        # A signal in the middle of an import may have left Python believing that it has yet to die of it.
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    return code


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{WORDS[signal.Signals(number)]}\n".encode())
    # Nothing has begun, and an exception in the middle of an import ends in many lines.
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
