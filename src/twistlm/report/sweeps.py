"""Reports of sweeps: tables as Markdown, CSV and LaTeX, and charts as PNG and PDF, in the sweep's folder."""

from collections.abc import Sequence
from pathlib import Path

from twistlm.core.advice import coded
from twistlm.core.remote import shown
from twistlm.core.storage import save_text
from twistlm.core.terminal import console
from twistlm.report.record import names_among
from twistlm.report.sweep_plots import plot_frontier, plot_sweep
from twistlm.report.sweep_tables import as_csv, latex, markdown, terminal
from twistlm.runs.sweeps.folder import SweepFolder
from twistlm.runs.sweeps.pooled import read

WRITERS = {"md": markdown, "csv": as_csv, "tex": latex}


def report(sweeps: Sequence[Path]) -> list[Path]:
    """Write tables and charts of sweeps, finished or not, and print the table; returns what was written.

    Each sweep gets its charts. The table has all of them, and the frontier too (expected log φ / β against KL to the
    prior, of sweeps with several powers); both are in the first one's folder.

    Raises:
        RunError: one is no sweep, comes twice, is damaged, or none of its runs is finished.
        StorageError: the system refuses.
    """
    pooled = {name: read(path) for name, path in zip(names_among(sweeps, "sweep"), sweeps, strict=True)}
    for path, each in zip(sweeps, pooled.values(), strict=True):
        if each.num_missing:
            print(coded("TW602", f"{path}: {each.num_missing} runs are missing; this is what is there"))
        if not each.has_curves:
            needs = "they need exact samples, and certificates during training"
            print(coded("TW603", f"{path}: no divergences against updates; {needs}"))
    first = SweepFolder(sweeps[0])
    written = [first.table(ending) for ending in WRITERS]
    for path, write in zip(written, WRITERS.values(), strict=True):
        save_text(path, write(pooled))
    for path, each in zip(sweeps, pooled.values(), strict=True):
        written += plot_sweep(each, SweepFolder(path).plots)
    written += plot_frontier(list(pooled.values()), first.plots)
    console().print(terminal(pooled))
    for path in written:
        print(f"Written to {shown(path)}")
    return written
