"""`twistlm report`."""

from typing import Annotated

from tyro.conf import Positional, arg

from twistlm.cli.options import AnyPlace, FilePath, check_writable
from twistlm.core.errors import ConfigError


def report(
    runs: Annotated[
        Positional[tuple[AnyPlace, ...]],
        arg(help="Run folders with a certificate; or folders of `twistlm sweep`, finished or not."),
    ],
    out: Annotated[
        FilePath | None,
        arg(help="HTML file; refused if it, or a folder of its name, exists. Default: report.html in the first run."),
    ] = None,
    overwrite: Annotated[bool, arg(help="Replace the file of --out, and the charts beside it.")] = False,
) -> None:
    """Everything about a run, or several side by side, in one HTML file that needs no network.

    It opens at a verdict in plain words and shows the sandwich, both KLs against updates, SMC token by token, and the
    samples with what every token did. Of a run on a set of prompts it has a table of these, to sort and search, from
    which each one's certificate, sandwich and samples open. Beside it, in a folder of the same name, are the charts as
    PNG and PDF. `twistlm evaluate` makes the certificate that it needs, `twistlm sample` the samples that it shows.

    Of sweeps it prints a table (KL both ways by method, mean over seeds ± 95 %, with the log Z that all runs share) and
    leaves it in the first one's folder as table.md, table.csv and table.tex; each one's charts are in its `plots`.
    """
    from twistlm.core.advice import coded
    from twistlm.core.remote import shown
    from twistlm.report import sweeps
    from twistlm.report.page import check_page
    from twistlm.report.page import report as written
    from twistlm.runs.sweeps.folder import SweepFolder

    if not runs:
        raise ConfigError("name at least one folder of a run or a sweep")
    if any(SweepFolder.is_one(path) for path in runs):
        if out is not None or overwrite:
            raise ConfigError("--out and --overwrite are for runs: of sweeps everything is in the sweep's folder")
        sweeps.report(runs)
        return
    if out is not None:
        check_page(out, overwrite)
        check_writable(out)
    made = written(runs, out, overwrite=overwrite)
    for path, record in zip(runs, made.records, strict=True):
        if record.diagnostics is None and not record.prompt_samples:
            more = f"twistlm sample {path}" if record.outline.target else "run.folder.save_samples(run.sample(…))"
            print(coded("TW601", f"{path}: no samples, so none are shown; draw some with: {more}"))
    print(f"Report: {shown(made.page)}\n{len(made.charts)} charts as PNG and PDF: {shown(made.charts[0].parent)}/")
