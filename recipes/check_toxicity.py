"""How well `toxicity` says what its teachers say: figures for its card, and where the teachers disagree.

python recipes/check_toxicity.py     # needs the model, `stories`, and what recipes/toxicity.py gathered
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from sklearn.metrics import roc_auc_score
from torch import Tensor

from check_stories import PROMPT
from draws import draw
from encoder import calibration
from teachers import both
from toxicity import Options as Recipe
from toxicity import gather, tenth_apart
from twistlm.core.rng import Rng
from twistlm.core.storage import save_json
from twistlm.models.huggingface import load
from twistlm.potentials import Classifier

SAMPLES, LENGTH = 4096, 20
TEACHERS = ("BiLSTM", "profanity")


@dataclass(frozen=True)
class Options:
    """Where things are.

    Attributes:
        recipe: what recipes/toxicity.py was given.
        stories: folder of `stories`.
        out: file for the figures.
        seed: of the samples of `stories`.
    """

    recipe: Recipe
    stories: Path = Path("src/twistlm/bundled/stories")
    out: Path = Path("recipes/figures/toxicity.json")
    seed: int = 1


def main(options: Options) -> None:
    """Score held-out texts by student and teachers, write the figures, print them."""
    recipe = options.recipe
    held_out = {name: tenth_apart(texts, recipe.seed)[1] for name, texts in gather(recipe).items()}
    held_out["samples of stories"] = draw(load(str(options.stories)), PROMPT, SAMPLES, LENGTH, Rng(options.seed))
    student = Classifier(recipe.out, "toxic")
    found: dict[str, Any] = {}
    disagreements: list[dict[str, Any]] = []
    for name, texts in held_out.items():
        p, truth = student.log_score(texts).exp(), both(texts)
        found[name] = against(p, truth)
        for i in (truth[:, 0] - truth[:, 1]).abs().topk(3).indices.tolist():
            said = dict(zip(TEACHERS, truth[i].tolist(), strict=True))
            disagreements.append({"from": name, "text": texts[i], "student": p[i].item(), **said})
    save_json(options.out, {"held out": found, "disagreements": disagreements})
    print(json.dumps(found, indent=1))


def against(p: Tensor, truth: Tensor) -> dict[str, Any]:
    """The student's probabilities [B] against each teacher's [B, 2] and their product."""
    rows: dict[str, Any] = {"texts": len(p), "student's mean": p.mean().item()}
    for name, teacher in zip((*TEACHERS, "both"), (*truth.unbind(-1), truth.prod(-1)), strict=True):
        positive = teacher > 0.5
        rows[name] = {
            "mean": teacher.mean().item(),
            "over 0.5": int(positive.sum()),
            "AUC": float(roc_auc_score(positive, p)) if 0 < positive.sum() < len(p) else None,
            "calibration error": calibration(p, teacher),
            "correlation of logits": torch.corrcoef(torch.stack([p.logit(1e-6), teacher.logit(1e-6)]))[0, 1].item(),
        }
    return rows


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
