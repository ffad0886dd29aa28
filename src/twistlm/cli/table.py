"""`twistlm table`."""

from typing import Annotated, Literal

from tyro.conf import arg

from twistlm.cli.options import SweepPaths, some


def table(
    sweeps: SweepPaths,
    format: Annotated[Literal["all", "markdown", "csv", "latex"], arg(help="Which files to write.")] = "all",
) -> None:
    """Tabulate sweeps: KL both ways by method, mean ± 95 % over seeds, with the log Z that all runs share.

    log Z is the median over all methods and seeds of the midpoint of each run's main sandwich. Prints the table and
    leaves table.md, table.csv and table.tex in the first sweep's folder.
    """
    from rich.console import Console

    from twistlm.pooling import read
    from twistlm.report import sweep_tables
    from twistlm.storage import save_text

    pooled = [read(path) for path in some(sweeps)]
    console = Console()
    for each in pooled:
        console.print(sweep_tables.sweep_table(each))
    writers = {"markdown": sweep_tables.markdown, "csv": sweep_tables.as_csv, "latex": sweep_tables.latex}
    endings = {"markdown": "md", "csv": "csv", "latex": "tex"}
    for name in endings if format == "all" else [format]:
        path = sweeps[0] / f"table.{endings[name]}"
        save_text(path, writers[name](pooled))
        console.print(f"Written to {path}", soft_wrap=True)
