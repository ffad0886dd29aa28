"""Certify models that were tuned elsewhere: one on the target's samples, one on a single mode of them.

    python examples/certify_tuned.py

The target is one-star reviews. Both models are the bundled story model after three epochs of ordinary fine-tuning,
saved by transformers and named by their folders, as any model tuned by PPO, GRPO or SFT would be. The second saw only
samples that begin with the most common word. By its reward E_q[φ] it is the best of all; KL(σ‖q) shows that it hardly
ever says most of what the target says.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from pydantic import TypeAdapter
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import twistlm
from twistlm import Certificate
from twistlm.core.rng import Rng
from twistlm.models.bundled import folder
from twistlm.report.tables import bounds_table, certificate_table
from twistlm.runs.experiments import get_preset


@dataclass(frozen=True)
class Options:
    """How much of it.

    Attributes:
        draws: base draws for training; as many more serve the certificates.
        epochs: over the samples that rejection accepted.
        out: where the models and the certificates go.
    """

    draws: int = 16_384
    epochs: int = 3
    out: Path = Path("runs/tuned")


def main(options: Options) -> None:
    """Collect, tune, certify, print."""
    target = get_preset("sentiment", "small").target()
    exact = target.collect(Rng(0), num_samples=None, max_draws=options.draws, chunk=2048).exact.samples.tokens
    first = exact[:, 0].mode().values
    chosen = {"tuned": exact, "one mode": exact[exact[:, 0] == first]}
    found = {"base model": twistlm.certify(target, num_draws=options.draws)}
    for name, tokens in chosen.items():
        print(f"{name}: tuning on {len(tokens)} samples of {len(exact)}")
        where = options.out / name.replace(" ", "-")
        tune(target.prompt_tokens, tokens, options.epochs, where)
        found[name] = twistlm.certify(target, where, num_draws=options.draws)
    (options.out / "certificates.json").write_bytes(TypeAdapter(dict[str, Certificate]).dump_json(found, indent=1))
    console = Console()
    console.print(certificate_table(found))
    console.print(bounds_table(found))


def tune(prompt: Tensor, tokens: Tensor, epochs: int, where: Path) -> None:
    """Fine-tune the bundled model on continuations [n, T] of the prompt, and save it as transformers does."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder("stories"), dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-4)
    for _ in range(epochs):
        for batch in tokens[torch.randperm(len(tokens))].split(32):
            texts = torch.cat([prompt.expand(len(batch), -1), batch], 1)
            # Transformers skips labels of −100: the prompt is given.
            labels = texts.masked_fill(torch.arange(texts.shape[1]) < len(prompt), -100)
            optimiser.zero_grad()
            model(texts, labels=labels).loss.backward()
            optimiser.step()
    model.save_pretrained(where)
    AutoTokenizer.from_pretrained(folder("stories")).save_pretrained(where)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
