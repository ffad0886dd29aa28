"""`twistlm gallery`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from twistlm.cli.options import ExperimentName, Overwrite, PresetName, Resume, Seed, if_exists
from twistlm.errors import ConfigError


def gallery(
    experiment: ExperimentName,
    out: Annotated[Path, arg(help="Folder for the runs and gallery.jsonl.")],
    preset: PresetName = "small",
    method: Annotated[str | None, arg(help="Loss; default: the preset's.")] = None,
    num_samples: Annotated[int, arg(help="Texts of each sampler.")] = 4,
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Look at what an experiment writes: base draws beside twisted SMC, unpicked.

    Trains one run for each setting that the experiment is best looked at in: toxicity at β = 10 with 200 tokens,
    sentiment at β = 100 for every class, infilling before four given ends. At such β no draw is accepted as exact, so
    these runs are judged by the lower bound on log Z alone.
    """
    from rich.console import Console

    from twistlm.gallery import gallery as hang
    from twistlm.gallery import show

    if num_samples < 1:
        raise ConfigError(f"num_samples must be at least 1, not {num_samples}")
    pictures = hang(
        experiment, preset, out, method=method, num_samples=num_samples, seed=seed, exists=if_exists(resume, overwrite)
    )
    console = Console()
    show(pictures, console)
    console.print(f"Written to {out / 'gallery.jsonl'}")
