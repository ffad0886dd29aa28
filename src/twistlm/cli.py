"""The command line. Each command is one function; its docstring is its help.

Commands import what they need when they run: `twistlm --help` should not wait for torch.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from twistlm.errors import ConfigError, TwistError


def _exists(resume: bool, overwrite: bool) -> str:
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other; choose one")
    return "resume" if resume else "overwrite" if overwrite else "refuse"


Out = Annotated[Path, arg(help="Run folder. An existing one is refused unless --resume or --overwrite is given.")]
Resume = Annotated[bool, arg(help="Continue the run in the folder where it stopped, bit for bit.")]
Overwrite = Annotated[bool, arg(help="Delete the run in the folder and start again.")]
Seed = Annotated[int, arg(help="The same seed gives the same results bit for bit on the same machine.")]
RunPath = Annotated[Positional[Path], arg(help="A run folder that `train` or `demo` has finished.")]
ExperimentName = Annotated[Positional[str], arg(help="An experiment; `twistlm list` shows them.")]
PresetName = Annotated[str, arg(help="Its size, with settings that suit it; `twistlm list` shows them.")]

# Options of experiments; each takes some of them.
Beta = Annotated[float | None, arg(help="Experiment's option: power of the classifier's probability.")]
NumTokens = Annotated[int | None, arg(help="Experiment's option: new tokens.")]
NumCondition = Annotated[int | None, arg(help="Experiment's option: tokens that must follow (infilling).")]
Label = Annotated[str | None, arg(help="Experiment's option: the class, e.g. '5 stars'.")]
EventThreshold = Annotated[float | None, arg(help="Experiment's option: what the score must exceed.")]


def _given(**options: Any) -> dict[str, Any]:
    """The options that were given on the command line."""
    return {name: value for name, value in options.items() if value is not None}


ProposalName = Annotated[str, arg(help="Distribution of the next token: twist_induced, base, or e.g. tempered:0.5.")]
ProposalRun = Annotated[
    Path | None, arg(help="Another run on the same base model, whose twist proposes while this one's weighs.")
]
ResamplerName = Annotated[str, arg(help="Scheme: systematic, stratified, residual or multinomial.")]
Threshold = Annotated[float, arg(help="Resample when ESS is at most this fraction of N: 0 never, 1 at every step.")]


def demo(
    out: Out = Path("runs/demo"),
    model: Annotated[
        Literal["stories", "smollm2"], arg(help="Base model: the bundled one, or a larger one.")
    ] = "stories",
    preset: PresetName = "demo",
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """The main job on real weights, from nothing to a certificate.

    Collects exact samples of a model's toxic continuations, trains a twist, and prints bounds on log Z,
    KL both ways before and after, and samples side by side. Under a minute on two cores with the bundled models,
    a minute and a half with SmolLM2-135M. Leaves certificate.json, samples.jsonl, bounds.png and divergences.png in the
    run folder.
    """
    from twistlm.demo import demo as run_demo
    from twistlm.experiments import get_preset

    experiment = {"stories": "toxicity", "smollm2": "toxicity-smollm2"}[model]
    run_demo(get_preset(experiment, preset), out, seed, _exists(resume, overwrite))


def list_(kind: Annotated[Positional[str], arg(help="Only parts of this kind, or 'all'.")] = "all") -> None:
    """What there is to choose from: models, classifiers, potentials, twists, losses, sources, experiments and more."""
    from rich.console import Console
    from rich.table import Table

    from twistlm.registry import HOMES, available

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
    Console().print(table, markup=False)


def collect(
    experiment: ExperimentName,
    out: Annotated[Path, arg(help="File to write (safetensors); `train --draws` reads it.")],
    preset: PresetName = "demo",
    num_samples: Annotated[int | None, arg(help="Stop once so many exact samples are accepted.")] = None,
    max_draws: Annotated[int, arg(help="Draw at most so many sequences from the base model.")] = 8192,
    beta: Beta = None,
    num_tokens: NumTokens = None,
    num_condition: NumCondition = None,
    label: Label = None,
    threshold: EventThreshold = None,
    seed: Seed = 0,
    resume: Annotated[bool, arg(help="Add to the file if it exists.")] = False,
    overwrite: Annotated[bool, arg(help="Replace the file if it exists.")] = False,
) -> None:
    """Collect exact samples of an experiment's target by rejection.

    Draws from the base model and accepts each with probability φ / sup φ. All draws are kept: weighted by φ they are
    training data.
    """
    from twistlm.errors import RunError
    from twistlm.experiments import get_preset
    from twistlm.rng import Rng

    policy = _exists(resume, overwrite)
    if out.exists() and policy == "refuse":
        raise RunError(
            f"{out} exists already; add to it with --resume, replace it with --overwrite, or choose another --out"
        )
    if policy == "overwrite":
        out.unlink(missing_ok=True)
    if max_draws < 1:
        raise ConfigError(f"max_draws must be at least 1, not {max_draws}")
    options = _given(beta=beta, num_tokens=num_tokens, num_condition=num_condition, label=label, threshold=threshold)
    chosen = get_preset(experiment, preset, **options)
    found = chosen.target().collect(
        Rng(seed), num_samples=num_samples, max_draws=max_draws, path=out, chunk=min(chosen.run.chunk, max_draws),
        keep_features=True, num_siblings=chosen.run.num_siblings,
    )  # fmt: skip
    n, hits = len(found.draws), len(found.exact)
    print(f"{hits} exact samples among {n} draws (acceptance {hits / n:.2%}, ESS {found.ess:.0f}): {out}")


def train(
    experiment: ExperimentName,
    out: Out,
    preset: PresetName = "demo",
    method: Annotated[str | None, arg(help="Loss, e.g. ctl, dpg or '0.7*ctl + 0.3*rl'; default: the preset's.")] = None,
    twist: Annotated[str | None, arg(help="Twist, e.g. lexical, low_rank, tied, mlp; default: the preset's.")] = None,
    num_particles: Annotated[int | None, arg(help="Sequences per update.")] = None,
    num_updates: Annotated[
        int | None, arg(help="At most so many updates; training stops early when it overfits.")
    ] = None,
    learning_rate: Annotated[float | None, arg(help="Of AdamW.")] = None,
    weight_decay: Annotated[float | None, arg(help="Of AdamW, towards log ψ = 0.")] = None,
    source: Annotated[
        str | None,
        arg(
            help="Where training samples come from: draws, base, proposal, or exact, smc (for roles that need no "
            "density), or several: proposal+exact."
        ),
    ] = None,
    num_draws: Annotated[int | None, arg(help="Base draws to collect first; 0 for none.")] = None,
    draws: Annotated[Path | None, arg(help="File of `twistlm collect` to use instead of drawing afresh.")] = None,
    beta: Beta = None,
    num_tokens: NumTokens = None,
    num_condition: NumCondition = None,
    label: Label = None,
    threshold: EventThreshold = None,
    seed: Seed = 0,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Learn a twist for an experiment's target.

    Base draws are collected first; they train the twist, judge it (held out) and evaluate it (never seen). The best
    twist by the held-out criterion is kept. Killed at any moment, it continues with --resume.
    """
    from twistlm import api
    from twistlm.experiments import get_preset
    from twistlm.sources import training_sources

    options = _given(beta=beta, num_tokens=num_tokens, num_condition=num_condition, label=label, threshold=threshold)
    chosen = get_preset(experiment, preset, **options)
    given = _given(learning_rate=learning_rate, weight_decay=weight_decay)
    if source is not None:
        given |= training_sources(method or chosen.run.training.loss, source)
    config = chosen.config(method)
    if num_draws is not None:
        config = replace(config, num_draws=num_draws)
    run = api.train(
        chosen.target(), config=config, twist=twist, num_particles=num_particles, num_updates=num_updates, seed=seed,
        out=out, exists=_exists(resume, overwrite), draws=draws, **given,
    )  # fmt: skip
    best = min((row for row in run.history if row["kind"] == "evaluation"), key=lambda row: row["held_out"]["value"])
    print(f"Best twist at update {best['update']}, saved in {out}. Next: twistlm evaluate {out}, twistlm sample {out}")


def evaluate(
    run: RunPath,
    num_particles: Annotated[
        tuple[int, ...] | None, arg(help="Numbers of particles of the sandwiches; default here and below: the run's.")
    ] = None,
    num_samples: Annotated[int | None, arg(help="Proposal samples for KL(q‖σ).")] = None,
    budget: Annotated[int | None, arg(help="Sequences spent on each bound at each number of particles.")] = None,
    proposal: ProposalName = "twist_induced",
    resampler: ResamplerName = "systematic",
    ess_threshold: Threshold = 0.5,
    proposal_run: ProposalRun = None,
    seed: Seed = 1,
) -> None:
    """Certify a run: bounds on log Z and KL both ways, beside the base model's. Writes certificate.json."""
    from rich.console import Console

    from twistlm.api import Run
    from twistlm.report.tables import bounds_table, certificate_table

    opened = Run.load(run)
    proposes = None if proposal_run is None else Run.load(proposal_run)
    certificates = {
        name: opened.evaluate(
            num_particles,
            num_samples=num_samples,
            budget=budget,
            seed=seed,
            before=name == "before",
            proposal=proposal,
            resampler=resampler,
            ess_threshold=ess_threshold,
            proposal_run=proposes,
        )
        for name in ("before", "after")
    }
    assert opened.folder is not None
    path = opened.folder.save_json("certificate.json", {name: c.as_dict() for name, c in certificates.items()})
    console = Console()
    console.print(certificate_table(certificates))
    console.print(bounds_table(certificates))
    console.print(f"Written to {path}")


def sample(
    run: RunPath,
    num_samples: Annotated[int, arg(help="How many.")] = 16,
    num_particles: Annotated[
        int | None,
        arg(help="SMC runs of so many particles, one drawn by weight from each; default: one run, all with weights."),
    ] = None,
    proposal: ProposalName = "twist_induced",
    resampler: ResamplerName = "systematic",
    ess_threshold: Threshold = 0.5,
    proposal_run: ProposalRun = None,
    condition: Annotated[str | None, arg(help="What must follow, for a run of infilling.")] = None,
    seed: Seed = 0,
) -> None:
    """Sample from the target by SMC with a run's twist. Prints the texts and writes samples.jsonl."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from twistlm.api import Run

    if num_samples < 1:
        raise ConfigError(f"num_samples must be at least 1, not {num_samples}")
    opened = Run.load(run)
    found = opened.sample(
        num_samples, num_particles=num_particles, condition=condition, seed=seed, proposal=proposal,
        resampler=resampler, ess_threshold=ess_threshold,
        proposal_run=None if proposal_run is None else Run.load(proposal_run),
    )  # fmt: skip
    assert opened.folder is not None
    path = opened.folder.save_samples(found.rows())
    table = Table("weight", "log φ", "log p₀", f"text after {opened.target.prompt!r}", box=None)
    for row in sorted(found.rows(), key=lambda row: -row["weight"]):
        table.add_row(f"{row['weight']:.4f}", f"{row['log_phi']:.2f}", f"{row['log_p']:.1f}", Text(repr(row["text"])))
    console = Console()
    console.print(table)
    console.print(f"log Z ≈ {found.log_Z_hat:.3f}. Written to {path}")


SweepPaths = Annotated[Positional[tuple[Path, ...]], arg(help="Folders of `twistlm sweep`, finished or not.")]


def sweep(
    experiment: ExperimentName,
    out: Annotated[Path, arg(help="The sweep's folder. Asking the same again continues it.")],
    preset: PresetName = "small",
    methods: Annotated[
        str, arg(help="Losses with commas between, or 'all': ctl, rl, sixo, fudge, dpg, ppo and gkl.")
    ] = "all",
    seeds: Annotated[int, arg(help="So many runs of every method, with seeds 0, 1, …")] = 5,
    num_updates: Annotated[int | None, arg(help="At most so many updates; default: the preset's.")] = None,
    learning_rate: Annotated[float | None, arg(help="Of every method; default: the preset's for each.")] = None,
    source: Annotated[str | None, arg(help="Of the target's samples, e.g. exact; default: the preset's.")] = None,
    beta: Beta = None,
    num_tokens: NumTokens = None,
    num_condition: NumCondition = None,
    label: Label = None,
    threshold: EventThreshold = None,
    jobs: Annotated[
        int, arg(help="So many runs at a time, each in a process of its own with its share of the cores.")
    ] = 1,
    overwrite: Annotated[bool, arg(help="Delete the sweep in the folder and start again.")] = False,
) -> None:
    """Compare methods on an experiment: every method with every seed, judged by the same exact samples.

    Killed at any moment, the same command continues it, run by run. Runs that fail are reported at the end, and the
    others are done. Leaves in the folder: sweep.json (what was asked), draws.safetensors (shared by all runs),
    METHOD/seed-K/ (a run folder each, with certificate.json) and failures.json (if any). `twistlm table` and
    `twistlm plot` read it, at any time.
    """
    from twistlm import grid

    options = _given(beta=beta, num_tokens=num_tokens, num_condition=num_condition, label=label, threshold=threshold)
    request = grid.Request(
        experiment, preset, options, grid.parse_methods(methods), seeds, num_updates, learning_rate, source
    )
    grid.sweep(request, out, jobs=jobs, overwrite=overwrite)


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

    pooled = [read(path) for path in _some(sweeps)]
    console = Console()
    for each in pooled:
        console.print(sweep_tables.sweep_table(each))
    writers = {"markdown": sweep_tables.markdown, "csv": sweep_tables.as_csv, "latex": sweep_tables.latex}
    endings = {"markdown": "md", "csv": "csv", "latex": "tex"}
    for name in endings if format == "all" else [format]:
        path = sweeps[0] / f"table.{endings[name]}"
        save_text(path, writers[name](pooled))
        console.print(f"Written to {path}", soft_wrap=True)


def plot(
    sweeps: SweepPaths,
    out: Annotated[Path | None, arg(help="Folder for the pictures; default: `plots` in each sweep's folder.")] = None,
) -> None:
    """Draw sweeps, as PNG and PDF.

    Leaves for each sweep divergences (both KLs against updates, with bands over seeds), bounds (on log Z against
    particles) and resampling (never, when ESS halves, at every step); and in the first one's folder frontier (expected
    log φ / β against KL to the prior, which wants sweeps with several --beta).
    """
    from twistlm.pooling import read
    from twistlm.report.sweep_plots import plot_frontier, plot_sweep

    pooled = [read(path) for path in _some(sweeps)]
    for path, each in zip(sweeps, pooled, strict=True):
        if each.num_missing:
            print(f"{path}: {each.num_missing} runs are missing; this is what is there")
        if not each.has_curves:
            print(f"{path}: no divergences against updates; they need exact samples, and certificates during training")
    folders = [path / "plots" if out is None else out / each.name if len(pooled) > 1 else out
               for path, each in zip(sweeps, pooled, strict=True)]  # fmt: skip
    written = [made for each, folder in zip(pooled, folders, strict=True) for made in plot_sweep(each, folder)]
    for path in written + plot_frontier(pooled, folders[0] if out is None else out):
        print(path)


def _some(sweeps: Sequence[Path]) -> Sequence[Path]:
    if not sweeps:
        raise ConfigError("name at least one folder of `twistlm sweep`")
    return sweeps


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
        experiment, preset, out, method=method, num_samples=num_samples, seed=seed, exists=_exists(resume, overwrite)
    )
    console = Console()
    show(pictures, console)
    console.print(f"Written to {out / 'gallery.jsonl'}")


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "list": list_,
    "collect": collect,
    "train": train,
    "evaluate": evaluate,
    "sample": sample,
    "gallery": gallery,
    "sweep": sweep,
    "table": table,
    "plot": plot,
}


DESCRIPTION = """Probabilistic inference in language models: sample from p₀(s)·φ(s) by twisted sequential Monte Carlo,
learn the twists, certify the result. Start with `twistlm demo`, then `twistlm list`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a deliberate error is one line on standard error and exit code 2."""
    # Spinning threads cost several times their worth when cores are shared; torch reads this when it is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="twistlm", args=arguments, description=DESCRIPTION)
    except TwistError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume continues what was saved, and a sweep by itself", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
