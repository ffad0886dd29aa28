"""`twistlm list`."""

from typing import Annotated

from tyro.conf import Positional, arg

from twistlm.cli.options import Text
from twistlm.core.errors import ConfigError


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
                for preset, value in entry.value().items():
                    names = value.target().downloads
                    needs = f"; from the hub: {', '.join(names)}" if names else ""
                    table.add_row("", f"  --preset {preset}", value.about + needs)
    console().print(table)
