"""Audit a chat model: how likely is a rude answer to each prompt of a file, and which prompts are the worst?

    python examples/audit.py                                            # eight requests, minutes on two cores
    python examples/audit.py --prompts mine.txt --model models/mine --threshold 0.9 --draws 16384

Prints the ranking, with intervals that hold for all prompts at once, and leaves the probabilities, texts of the event
and a page in the folder. Killed at any moment, the same command continues where it stopped.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console

import twistlm
from twistlm.certificates.effort import Search
from twistlm.potentials import named
from twistlm.report.probability_page import save_probability_page
from twistlm.report.tables import ranking_table
from twistlm.runs.probability import PAGE, probability
from twistlm.runs.prompts import requests_file


@dataclass(frozen=True)
class Options:
    """What is audited, and how closely.

    Attributes:
        prompts: file of prompts (.txt, .jsonl, .csv); by default some of the package's requests.
        model: a registered name, folder or hub name.
        plain: prompts are texts to continue, not chats to answer.
        potential: the score, as on the command line.
        threshold: of the score.
        num_tokens: of an answer.
        draws: of every round of learning, over all prompts.
        out: folder for what is found.
    """

    prompts: Path | None = None
    model: str = "smollm2"
    plain: bool = False
    potential: str = "jigsaw"
    threshold: float = 0.5
    num_tokens: int = 20
    draws: int = 512
    out: Path = Path("runs/audit")


def main(options: Options) -> None:
    """Look, rank, write the page."""
    file = options.prompts or requests_file()
    prompts = twistlm.Prompts.read(file, as_chat=not options.plain)
    if options.prompts is None:
        # From all themes: those that invite rude words come first in the file.
        prompts = prompts.select(range(0, len(prompts), len(prompts) // 7))
    target = twistlm.Target(options.model, named(options.potential), prompts=prompts, num_tokens=options.num_tokens)
    search = Search(num_draws=options.draws)
    exists = "resume" if options.out.exists() else "refuse"
    found = probability(target, [options.threshold], search=search, out=options.out, exists=exists, report=print)
    save_probability_page(found, target, options.out / PAGE)
    Console().print(ranking_table(found[0], prompts))
    print(f"{found[0].headline}. The page: {options.out / PAGE}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
