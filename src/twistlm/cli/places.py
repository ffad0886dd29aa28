"""Places that a command is given as URLs: it works on their working copies, and what it writes there is published."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from twistlm.core.remote import opened

# What commands call the places that they write (but for one that only reads), and those that they read unless --out
# says where else to write.
WRITTEN, READ_IF_OUT = ("out", "run"), "runs"


@contextmanager
def on_this_machine(given: Mapping[str, Any], *, only_reads: bool = False) -> Iterator[dict[str, Any]]:
    """A command's arguments with paths in place of URLs.

    Args:
        given: the arguments.
        only_reads: it writes nothing to a run; others may do so meanwhile.

    Raises:
        ConfigError: a scheme needs a package that is not there.
        RunError: somebody else is writing one of them.
        StorageError: a store refuses.
    """
    values = dict(given)
    with ExitStack() as stack:

        def path(place: Path, write: bool) -> Path:
            return stack.enter_context(opened(place, write=write))

        for name in WRITTEN:
            if isinstance(values.get(name), Path):
                values[name] = path(values[name], not only_reads)
        # Options that go together come as one.
        for name, group in values.items():
            if is_dataclass(group) and not isinstance(group, type) and isinstance(getattr(group, "out", None), Path):
                values[name] = replace(group, out=path(vars(group)["out"], True))
        if READ_IF_OUT in values:
            values[READ_IF_OUT] = tuple(path(each, values.get("out") is None) for each in values[READ_IF_OUT])
        yield values
