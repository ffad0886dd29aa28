"""`twistlm gallery`."""

from typing import Annotated

from tyro.conf import arg

from twistlm.cli.options import AnyPlace, Count, ExperimentName, PresetName, RunExists, Seed, Text


def gallery(
    experiment: ExperimentName,
    out: Annotated[AnyPlace, arg(help="Folder for the runs and gallery.jsonl.")],
    preset: PresetName = "small",
    method: Annotated[Text | None, arg(help="Loss; default: the preset's.")] = None,
    num_samples: Annotated[Count, arg(help="Texts of each sampler.")] = 4,
    seed: Seed = 0,
    *,
    existing: RunExists,
) -> None:
    """Look at what an experiment writes: base draws beside twisted SMC, unpicked.

    Trains one run for each setting that the experiment is best looked at in: toxicity at β = 10 with 200 tokens,
    sentiment at β = 100 for every class, infilling before four given ends. At such β no draw is accepted as exact, so
    these runs are judged by the lower bound on log Z alone.
    """

    from twistlm.cli.jobs.gallery import gallery as hang
    from twistlm.cli.jobs.gallery import show
    from twistlm.core.remote import shown
    from twistlm.core.terminal import console

    pictures = hang(experiment, preset, out, method=method, num_samples=num_samples, seed=seed, exists=existing.policy)
    show(pictures, console())
    print(f"Written to {shown(out / 'gallery.jsonl')}")
