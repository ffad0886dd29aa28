"""`twistlm table`."""

from typing import Annotated, Literal

from tyro.conf import arg

from twistlm.cli.options import SweepPaths, some


def table(
    sweeps: SweepPaths,
    format: Annotated[Literal["all", "markdown", "csv", "latex"], arg(help="Which files to write.")] = "all",
) -> None:
    """Tabulate sweeps: KL both ways by method, mean over seeds ± 95 %, with the log Z that all runs share.

    log Z is that of all runs' certificates, weighted by precision; ± contains its error and that of the exact samples,
    which all runs share. Prints the table and leaves table.md, table.csv and table.tex in the first sweep's folder.
    """

    from twistlm.core.remote import shown
    from twistlm.core.storage import save_text
    from twistlm.core.terminal import console
    from twistlm.report import sweep_tables
    from twistlm.report.record import names_among
    from twistlm.runs.sweeps.folder import SweepFolder
    from twistlm.runs.sweeps.pooled import read

    pooled = {name: read(path) for name, path in zip(names_among(some(sweeps), "sweep"), sweeps, strict=True)}
    writers = {"markdown": sweep_tables.markdown, "csv": sweep_tables.as_csv, "latex": sweep_tables.latex}
    endings = {"markdown": "md", "csv": "csv", "latex": "tex"}
    first = SweepFolder(sweeps[0])
    written = {first.table(endings[name]): writers[name] for name in endings if format in ("all", name)}
    for path, write in written.items():
        save_text(path, write(pooled))
    console().print(sweep_tables.terminal(pooled))
    for path in written:
        print(f"Written to {shown(path)}")
