"""`twistlm explain`."""

from typing import Annotated

from tyro.conf import Positional, arg

from twistlm.cli.options import Text


def explain(
    code: Annotated[
        Positional[Text | None], arg(help="A code such as TW203, or a class of errors; without it all are listed.")
    ] = None,
) -> None:
    """What the code at the end of a warning or verdict means: its cause, and what to do. For example:

    twistlm explain TW203
    """
    from rich.table import Table
    from rich.text import Text as Shown

    from twistlm.core.advice import explained, table
    from twistlm.core.terminal import console

    rows = Table(show_header=code is None, box=None, pad_edge=False)
    if code is None:
        for heading in ("code", "what"):
            rows.add_column(heading)
        for each in table().values():
            rows.add_row(each.code, each.title)
    else:
        found = explained(code)
        console().print(Shown(f"{found.code}: {found.title}", style="bold"))
        said = {"means": found.means, "cause": found.cause, "remedy": found.remedy}
        for name, text in (said if found.link is None else {**said, "see": found.link}).items():
            rows.add_row(name, text)
    console().print(rows)
