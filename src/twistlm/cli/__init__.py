"""The command line. Each command is one function in a file of its own; its docstring is its help.

Commands import what they need when they run: `twistlm --help` should not wait for torch.
"""

import errno
import functools
import inspect
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from importlib.metadata import version
from io import StringIO
from itertools import dropwhile, takewhile
from operator import not_
from pathlib import Path
from typing import Any

import tyro

from twistlm.cli.certify import certify
from twistlm.cli.collect import collect
from twistlm.cli.demo import demo
from twistlm.cli.evaluate import evaluate
from twistlm.cli.list import list_
from twistlm.cli.options import Plugins
from twistlm.cli.places import on_this_machine
from twistlm.cli.probability import probability
from twistlm.cli.report import report
from twistlm.cli.sample import sample
from twistlm.cli.serve import serve
from twistlm.cli.sweep import sweep
from twistlm.cli.train import train
from twistlm.cli.validation import validated
from twistlm.core.errors import ConfigError, StorageError, TwistError
from twistlm.core.plugins import load_file
from twistlm.core.processes import is_first, launched
from twistlm.core.signals import Terminated, terminable
from twistlm.core.terminal import hush, outlets, plain

Command = Callable[..., None]
# Of a file: its number, when it was changed, its size.
Identity = tuple[int, int, int]

COMMANDS: dict[str, Command] = {
    "demo": demo,
    "list": list_,
    "collect": collect,
    "train": train,
    "evaluate": evaluate,
    "certify": certify,
    "probability": probability,
    "sample": sample,
    "serve": serve,
    "report": report,
    "sweep": sweep,
}


# What a terminal is told of colours: tyro tells it where standard output is one, whatever standard error is.
STYLE = re.compile(r"\x1b\[[0-9;]*m")

DESCRIPTION = """Probabilistic inference in language models: sample from p₀(s)·φ(s) by twisted sequential Monte Carlo,
learn the twists, certify the result. Start with `twistlm demo`, then `twistlm list`. Parts of your own come from
installed packages, or from a file: --plugin mine.py, with any command. `twistlm --version` says which
this is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a deliberate error is one line on standard error and exit code 2.

    What the system refuses (no room, no permission, a file in the way) is one line and code 1.
    """
    # Spinning threads cost several times their worth when cores are shared; torch reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command: Command | None = None
    given: dict[str, Any] = {}
    before: Identity | None = None
    with outlets(), terminable(signal.SIGINT, signal.SIGTERM):
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        try:
            if launched():
                _join()
            asked = sys.argv[1:] if arguments is None else arguments
            if tuple(asked) == ("--version",):
                print(f"twistlm {version('twistlm')}")
                return 0
            command, given = _parsed(asked)
            plugins = validated(_load, {"plugin": given.pop("plugin")})["plugin"]
            given = validated(command, given)
            before = _identity(given)
            if launched() and command is not train:
                raise ConfigError("train alone runs as several processes; start other commands without a launcher")
            _load(plugin=plugins)
            with on_this_machine(given, only_reads=command is serve) as given:
                before = _identity(given)
                command(**given)
            sys.stdout.flush()
        except TwistError as error:
            return _refused(error, error.exit_code)
        except OSError as error:
            return _refused(error, StorageError.exit_code)
        except (MemoryError, RuntimeError) as error:
            from twistlm.core.memory import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            return _refused(MemoryError(_without_memory(error)), StorageError.exit_code)
        except KeyboardInterrupt:
            return _stopped("interrupted", 128 + signal.SIGINT, command, given, before)
        except Terminated:
            return _stopped("terminated", 128 + signal.SIGTERM, command, given, before)
    return 0


def _join() -> None:
    """Find the other processes, before anything can go wrong that one line should tell; the first speaks for all."""
    from twistlm.core.processes import Processes

    Processes.joined()
    if not is_first():
        hush()
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")


def _says(line: str) -> None:
    """The last line on standard error; of several processes one has it, the first to end."""
    if launched():
        from twistlm.core.processes import ends_first

        if not ends_first():
            return
    print(plain(line), file=sys.stderr)


def _parsed(arguments: Sequence[str]) -> tuple[Command, dict[str, Any]]:
    """The command that is asked for, and what is given to it.

    Raises:
        ConfigError: there is no such command or option, or a value is not of its type.
        SystemExit: help was asked for, and has been shown.
    """
    choices = {name: _not_yet(command) for name, command in COMMANDS.items()}
    said = StringIO()
    try:
        with redirect_stderr(said):
            parsed: tuple[Command, dict[str, Any]] = tyro.extras.subcommand_cli_from_dict(
                choices,
                prog="twistlm",
                args=_plugins_last(arguments),
                description=DESCRIPTION,
                # A file may be called None, and nothing else is.
                config=(tyro.conf.DisallowNone,),
            )
    except SystemExit as stopped:
        if not stopped.code:
            raise
        raise ConfigError(f"{_one_line(said.getvalue())}; see twistlm --help") from None
    return parsed


def _not_yet(command: Command) -> Callable[..., tuple[Command, dict[str, Any]]]:
    """What looks like the command with one more option, `plugin`, and only remembers what it was given."""

    @functools.wraps(command)
    def remember(**given: Any) -> tuple[Command, dict[str, Any]]:
        return command, given

    signature = inspect.signature(command)
    plugin = inspect.signature(_load).parameters["plugin"]
    remember.__annotations__ = {**command.__annotations__, "plugin": plugin.annotation}
    vars(remember)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), plugin])
    # By way of this the command's own annotations would be read.
    del vars(remember)["__wrapped__"]
    return remember


def _load(*, plugin: Plugins = ()) -> None:
    """What every command does first."""
    for path in plugin:
        load_file(path)


def _plugins_last(arguments: Sequence[str]) -> Sequence[str]:
    """The arguments with those `--plugin` after the command that stand before it."""
    command = 0
    while command < len(arguments) and arguments[command].partition("=")[0] == "--plugin":
        command += 1 if "=" in arguments[command] else 2
    return (*arguments[command:], *arguments[:command])


def _one_line(box: str) -> str:
    """What tyro says in the first section of its box, without colours and frame."""
    plain, frame = STYLE.sub("", box), " " + "".join(map(chr, range(0x2500, 0x2580)))
    # Where standard output is not UTF-8, rules are of hyphens, and one is below the title.
    lines = [line.strip(frame) if set(line) - set(frame + "-") else "" for line in plain.splitlines()[1:]]
    first = takewhile(bool, dropwhile(not_, lines))
    return " ".join(" ".join(first).split()) or " ".join(plain.split())


def _refused(error: Exception, code: int) -> int:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO):
        hush()
    _says(f"error: {' '.join(str(error).split())}")
    return code


def _without_memory(error: Exception) -> str:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"out of memory ({said}); what was saved is as it was. Ask for fewer sequences at a time, or for shorter ones, "
        "or use a machine with more"
    )


def _identity(given: Mapping[str, Any]) -> Identity | None:
    """What tells the file at --out from all that may take its place; None where there is none."""
    out = given.get("out")
    with suppress(OSError, ValueError):
        if isinstance(out, Path):
            found = out.stat()
            return found.st_ino, found.st_mtime_ns, found.st_size
    return None


def _stopped(how: str, code: int, command: Command | None, given: Mapping[str, Any], before: Identity | None) -> int:
    """The last line of a command that was told to end, with what continues it, if anything does.

    Args:
        how: it was told.
        code: its exit code.
        command: None if it had not come so far.
        given: its arguments.
        before: what was at --out when it began.
    """
    from twistlm.core.folders import is_drafted

    existing = given.get("existing")
    out = given.get("out", getattr(existing, "out", None))
    now = _identity(given)
    if command is sweep or (out is not None and is_drafted(out)):
        remedy = "; the same command again continues it"
    elif out is None or existing is None or (command is collect and now is None):
        remedy = ""
    elif command is collect and existing.overwrite and now == before:
        remedy = "; what was there is as it was"
    elif command is collect and existing.overwrite:
        remedy = "; --resume in place of --overwrite continues what was saved"
    else:
        remedy = "; --resume continues what was saved"
    _says(f"{how}{remedy}")
    return code
