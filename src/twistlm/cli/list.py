"""`twistlm list`."""

from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from twistlm.cli.options import Text
from twistlm.core.errors import ConfigError

if TYPE_CHECKING:
    from twistlm.core.registry import Entry


def list_(kind: Annotated[Positional[Text], arg(help="Only parts of this kind, or 'all'.")] = "all") -> None:
    """What there is to choose from: models, classifiers, potentials, twists, losses, sources, experiments and more."""
    from rich.table import Table

    from twistlm.core.registry import HOMES, available
    from twistlm.core.terminal import console

    if kind != "all" and kind not in HOMES:
        raise ConfigError(f"unknown kind {kind!r}; choose one of: all, {', '.join(HOMES)}")
    table = Table(show_header=True, box=None, pad_edge=False)
    for heading in ("kind", "name", "what it is"):
        table.add_column(heading)
    for each in HOMES if kind == "all" else [kind]:
        for name, entry in available(each).items():
            table.add_row(each, name, entry.summary)
            if each == "experiment":
                for preset, about in _presets(entry):
                    table.add_row("", preset, about)
    console().print(table)


def _presets(entry: "Entry") -> list[tuple[str, str]]:
    """An experiment's presets, and what each is for and needs."""
    rows = []
    try:
        for name, preset in entry.value().items():
            names = preset.target().downloads
            needs = f"; from the hub: {', '.join(names)}" if names else ""
            rows.append((f"  --preset {name}", preset.about + needs))
    except Exception as error:  # somebody else's may raise anything, and must not hide all others
        rows.append(("", f"cannot be shown: it raised {type(error).__name__} ({error})"))
    return rows
