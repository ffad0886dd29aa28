"""`twistlm report`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from twistlm.cli.options import AnyPlace, FilePath, check_writable
from twistlm.core.errors import ConfigError, RunError


def report(
    runs: Annotated[Positional[tuple[AnyPlace, ...]], arg(help="Run folders with a certificate.")],
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
    """
    from twistlm.core.advice import coded
    from twistlm.core.places import shown
    from twistlm.report.page import save_report
    from twistlm.report.record import read_all
    from twistlm.runs.folder import RunFolder

    if not runs:
        raise ConfigError("name at least one run folder")
    if out is not None:
        _check(out, overwrite)
    records = read_all(runs)
    for path, record in zip(runs, records, strict=True):
        if record.diagnostics is None and not record.prompt_samples:
            print(coded("TW601", f"{path}: no samples, so none are shown; draw some with: twistlm sample {path}"))
    path, pictures = save_report(records, RunFolder(runs[0]).report if out is None else out)
    print(f"Report: {shown(path)}\n{len(pictures)} charts as PNG and PDF: {shown(pictures[0].parent)}/")


def _check(out: Path, overwrite: bool) -> None:
    """Refuse what is not a page's name, or would replace something.

    Raises:
        ConfigError: it does not end in .html, which is what tells the page from the folder of its charts.
        RunError: the page or the folder exists.
    """
    if out.suffix != ".html":
        raise ConfigError(f"--out must be the name of a file that ends in .html, not {out}")
    for path in (out, out.with_suffix("")):
        if path.exists() and not overwrite:
            raise RunError(f"{path} exists already; replace it with --overwrite, or choose another --out")
    check_writable(out)
