"""How often `stories` tells something toxic or sad by itself: the base rates that experiments start from.

python recipes/check_rates.py     # needs the bundled models; minutes on two cores
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from scipy.stats import binomtest
from torch import Tensor

from check_stories import PROMPT
from draws import draw
from grades import CLASSES
from twistlm.core.estimates import mean
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json, save_json
from twistlm.models.huggingface import HuggingFaceLM, load
from twistlm.potentials import Classifier

REVIEW = "I bought this"
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95)
LENGTH, BATCH = 20, 4096


@dataclass(frozen=True)
class Options:
    """How much to draw.

    Attributes:
        samples: for the story prompt; a twentieth of it for the review.
        out: file for the figures.
        seed: of the samples.
    """

    samples: int = 100_000
    out: Path = Path("recipes/figures/base_rates.json")
    seed: int = 1


def main(options: Options) -> None:
    """Draw, score, write, print."""
    lm = load("stories")
    texts = _draw(lm, PROMPT, options.samples, Rng(options.seed).fork("story"))
    p = Classifier("toxicity", "toxic", batch_size=256).log_score(texts).exp()
    found: dict[str, Any] = {
        "story": {"prompt": PROMPT, "tokens": LENGTH, "samples": len(texts), "mean p(toxic)": as_json(mean(p)),
                  "P[p(toxic) > threshold]": {str(each): _share(p > each) for each in THRESHOLDS},
                  "most toxic": [texts[i] for i in p.topk(8).indices.tolist()]},
    }  # fmt: skip
    texts = _draw(lm, REVIEW, options.samples // 20, Rng(options.seed).fork("review"))
    logits = torch.stack([Classifier("sentiment", label).log_score(texts) for label in CLASSES], -1)
    found["review"] = {
        "prompt": REVIEW, "tokens": LENGTH, "samples": len(texts), "texts": texts[:8],
        "P[class is most likely]": {
            label: _share(logits.argmax(-1) == i) for i, label in enumerate(CLASSES)
        },
        "mean p(class)": {label: as_json(mean(logits[:, i].exp())) for i, label in enumerate(CLASSES)},
    }  # fmt: skip
    save_json(options.out, found)
    print(json.dumps(found, indent=1))


def _draw(lm: HuggingFaceLM, prompt: str, count: int, rng: Rng) -> list[str]:
    texts: list[str] = []
    with bar("samples", count) as report:
        for number in range(0, count, BATCH):
            texts += draw(lm, prompt, min(BATCH, count - number), LENGTH, rng.fork(number))
            report(len(texts), "")
    return texts


def _share(hits: Tensor) -> dict[str, Any]:
    """The share of true values with its exact 95 % interval (Clopper and Pearson, 1934)."""
    count = int(hits.sum())
    interval = binomtest(count, len(hits)).proportion_ci()
    return {"count": count, "share": count / len(hits), "low": float(interval.low), "high": float(interval.high)}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
