"""The command line. Each command is one function in a file of its own; its docstring is its help.

Commands import what they need when they run: `twistlm --help` should not wait for torch.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence

import tyro

from twistlm.cli.certify import certify
from twistlm.cli.collect import collect
from twistlm.cli.demo import demo
from twistlm.cli.evaluate import evaluate
from twistlm.cli.gallery import gallery
from twistlm.cli.list import list_
from twistlm.cli.plot import plot
from twistlm.cli.probability import probability
from twistlm.cli.report import report
from twistlm.cli.sample import sample
from twistlm.cli.sweep import sweep
from twistlm.cli.table import table
from twistlm.cli.train import train
from twistlm.errors import StorageError, TwistError

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "list": list_,
    "collect": collect,
    "train": train,
    "evaluate": evaluate,
    "certify": certify,
    "probability": probability,
    "sample": sample,
    "report": report,
    "gallery": gallery,
    "sweep": sweep,
    "table": table,
    "plot": plot,
}


DESCRIPTION = """Probabilistic inference in language models: sample from p₀(s)·φ(s) by twisted sequential Monte Carlo,
learn the twists, certify the result. Start with `twistlm demo`, then `twistlm list`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a deliberate error is one line on standard error and exit code 2.

    What the system refuses (no room, no permission, a file in the way) is one line and code 1.
    """
    # Spinning threads cost several times their worth when cores are shared; torch reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="twistlm", args=arguments, description=DESCRIPTION)
    except TwistError as error:
        return _refused(error, error.exit_code)
    except BrokenPipeError:
        # Whoever read along has seen enough (`| head -1`). Python would complain when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _refused(error, StorageError.exit_code)
    except KeyboardInterrupt:
        print("interrupted; --resume continues what was saved, and a sweep by itself", file=sys.stderr)
        return 130
    return 0


def _refused(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
