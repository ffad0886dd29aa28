"""The command line's entry, which imports nothing before it has arranged for being interrupted."""

import gc
import importlib
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
# These are asked when something is broken, and do without torch.
WITHOUT_TORCH = {"--system", "--version", "-h", "--help"}


def main() -> int:
    """Run `twistlm.cli.main`; until it takes over, a signal ends the process in one line."""
    for number in WORDS:
        signal.signal(number, _leave)
    # Half a million objects of torch and transformers never become garbage, and are looked at for it ten times.
    gc.set_threshold(50_000)
    from twistlm.cli import main as run

    if len(sys.argv) > 1 and WITHOUT_TORCH.isdisjoint(sys.argv):
        # Spinning threads cost several times their worth when cores are shared; torch reads this when it is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # The command would load it, too, but an exception in the middle of that ends in many lines.
        importlib.import_module("torch")
    code = run()
    if code > 128:
        # A signal in the middle of an import may have left Python believing that it has yet to die of it.
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    # Nor are they at the end.
    gc.freeze()
    return code


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{WORDS[signal.Signals(number)]}\n".encode())
    # Nothing has begun, and an exception in the middle of an import ends in many lines.
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
