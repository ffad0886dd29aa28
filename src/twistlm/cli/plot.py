"""`twistlm plot`."""

from typing import Annotated

from tyro.conf import arg

from twistlm.cli.options import AnyPlace, SweepPaths, some


def plot(
    sweeps: SweepPaths,
    out: Annotated[
        AnyPlace | None,
        arg(
            help="Folder for the pictures, those of each of several sweeps in a folder of its name; default: `plots` "
            "in each sweep's folder."
        ),
    ] = None,
) -> None:
    """Draw sweeps, as PNG and PDF.

    Leaves for each sweep divergences (both KLs against updates, with bands over seeds), bounds (on log Z against
    particles) and resampling (never, when ESS halves, at every step); and in the first one's folder frontier (expected
    log φ / β against KL to the prior, which wants sweeps with several --beta).
    """
    from twistlm.core.advice import coded
    from twistlm.core.remote import shown
    from twistlm.report.record import names_among
    from twistlm.report.sweep_plots import plot_frontier, plot_sweep
    from twistlm.runs.sweeps.folder import SweepFolder
    from twistlm.runs.sweeps.pooled import read

    pooled = [read(path) for path in some(sweeps)]
    if out is None:
        folders = [SweepFolder(path).plots for path in sweeps]
    else:
        folders = [out / name for name in names_among(sweeps, "sweep")] if len(sweeps) > 1 else [out]
    for path, each in zip(sweeps, pooled, strict=True):
        if each.num_missing:
            print(coded("TW602", f"{path}: {each.num_missing} runs are missing; this is what is there"))
        if not each.has_curves:
            needs = "they need exact samples, and certificates during training"
            print(coded("TW603", f"{path}: no divergences against updates; {needs}"))
    written = [made for each, folder in zip(pooled, folders, strict=True) for made in plot_sweep(each, folder)]
    for path in written + plot_frontier(pooled, folders[0] if out is None else out):
        print(shown(path))
