"""`twistlm sample`."""

from typing import Annotated

from tyro.conf import arg

from twistlm.cli.options import Count, RunPath, Seed, SMCOptions, Text, TrustFunction

# Draws of the base model to compare with: more than anyone reads.
MOST_BASE = 100


def sample(
    run: RunPath,
    num_samples: Annotated[Count, arg(help="How many.")] = 16,
    num_particles: Annotated[
        Count | None,
        arg(help="SMC runs of so many particles, one drawn by weight from each; default: one run, all with weights."),
    ] = None,
    prompt: Annotated[
        Text | None,
        arg(
            help="One of the run's prompts, by name, or a new one that training need not have seen: a text, to which a "
            "run on chats answers. Needed where the run has several."
        ),
    ] = None,
    condition: Annotated[Text | None, arg(help="What must follow, for a run of infilling.")] = None,
    trust_function: TrustFunction = (),
    seed: Seed = 0,
    *,
    smc: SMCOptions,
) -> None:
    """Sample from the target by SMC with a run's twist. Prints the texts.

    Writes samples.jsonl, base_samples.jsonl (draws of the base model, to compare with) and diagnostics.json
    (what SMC recorded), and says what is wrong with it, if anything. Those of another time move to samples/. For
    example:

    twistlm sample runs/requests --prompt "How do I get back at my neighbour?"
    """
    from rich.table import Table
    from rich.text import Text

    from twistlm.core.remote import shown
    from twistlm.core.terminal import console
    from twistlm.report.tables import print_lines
    from twistlm.runs.run import Run
    from twistlm.sampling.diagnostics import findings

    opened = Run.load(run, trust_functions=trust_function, draws=False)
    folder = opened.folder
    assert folder is not None
    # What cannot be kept is refused before it is drawn.
    with folder.adding():
        pass
    drawn = opened.sample(
        num_samples,
        num_particles=num_particles,
        prompt=prompt,
        condition=condition,
        seed=seed,
        **smc.for_run(trust_function),
    )
    base = opened.base_samples(min(num_samples, MOST_BASE), prompt=prompt, condition=condition, seed=seed)
    assert drawn.diagnostics is not None
    with folder.adding():
        path = folder.save_samples(drawn, base)
    table = Table(
        "weight", "log φ", "log p₀", f"text after {opened.target.prompts if prompt is None else repr(prompt)}", box=None
    )
    for row in sorted(drawn.rows(), key=lambda row: -row["weight"]):
        table.add_row(f"{row['weight']:.4f}", f"{row['log_phi']:.2f}", f"{row['log_p']:.1f}", Text(repr(row["text"])))
    show = console()
    show.print(table)
    print_lines(show, [f"Warning: {each}" for each in findings(drawn.diagnostics)])
    print(f"log Z ≈ {drawn.log_Z_hat:.3f}. Written to {shown(path)}")
