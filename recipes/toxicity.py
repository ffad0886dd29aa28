"""`toxicity`: is a text toxic? A network of 1.5 million parameters, distilled from two packaged classifiers.

    python recipes/toxicity.py     # needs recipes/corpus.py's output; some ten minutes on two cores

Its target is the product of both teachers' probabilities (either alone calls many a harmless text toxic), on tweets,
stories, samples of SmolLM2 and short handmade contrasts. Writes the folder: weights in bfloat16, tokenizer.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import tyro
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import encoder
import rude
from fit import Schedule, fit
from packages import tweets
from stories import read
from teachers import both

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """How long to train, and where.

    Attributes:
        corpus: folder that recipes/corpus.py wrote.
        work: folder for texts and teachers' scores, which are made once.
        out: the model's folder.
        steps: updates of 128 texts.
        learning_rate: its peak.
        stories: passages of the corpus.
        seed: of everything.
    """

    corpus: Path = Path("runs/recipes/corpus")
    work: Path = Path("runs/recipes/toxicity")
    out: Path = Path("src/twistlm/bundled/toxicity")
    steps: int = 2_000
    learning_rate: float = 1e-3
    stories: int = 40_000
    seed: int = 0


def main(options: Options) -> None:
    """Gather, score by the teachers, train, save."""
    sources = gather(options)
    split = {name: tenth_apart(texts, options.seed) for name, texts in sources.items()}
    train = [text for learnt, _ in split.values() for text in learnt]
    checked = {name: held_out for name, (_, held_out) in split.items()}
    tokenizer = encoder.make_tokenizer(train)
    network = encoder.make_network(["toxic"], options.seed, "toxicity", problem_type="multi_label_classification")
    texts = encoder.Texts(tokenizer, train, both(train).prod(-1))
    held_out = {name: encoder.Texts(tokenizer, each, both(each).prod(-1)) for name, each in checked.items()}

    def loss(batch: Any) -> Tensor:
        inputs, target = batch
        return binary_cross_entropy_with_logits(network(**inputs).logits[:, 0].float(), target.float())

    def evaluate() -> str:
        excess = {name: _excess(each.logits(network)[:, 0], each.targets) for name, each in held_out.items()}
        return "KL to the target, nats: " + ", ".join(f"{name} {value:.4f}" for name, value in excess.items())

    schedule = Schedule(options.steps, options.learning_rate, weight_decay=0.01, report_every=500)
    fit(network, texts.forever(128, options.seed), loss, schedule, evaluate, "toxicity")
    encoder.save(network, tokenizer, options.out)


def gather(options: Options) -> dict[str, list[str]]:
    """Texts by where they come from; made once."""
    path = options.work / "texts.json"
    if not path.exists():
        stories, _ = read(options.corpus)
        found = {
            "tweets": [text for text, _ in tweets()],
            "stories": _passages(stories, options),
            "samples": rude.samples(options.seed),
            "contrasts": list(rude.contrasts()),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    found = json.loads(path.read_text())
    return {name: list(dict.fromkeys(texts)) for name, texts in found.items()}


def _passages(stories: list[str], options: Options) -> list[str]:
    """Beginnings of stories, cut anywhere: what a sampler of twenty tokens makes."""
    random_ = random.Random(options.seed)
    passages = []
    for _ in range(options.stories):
        words = random_.choice(stories).split()
        start = 0 if random_.random() < 0.6 else random_.randrange(max(1, len(words) - 5))
        passages.append(" ".join(words[start : start + random_.randint(6, 40)]))
    return passages


def tenth_apart(items: list[T], seed: int) -> tuple[list[T], list[T]]:
    """Nine tenths to learn from and one to check by."""
    order = list(items)
    random.Random(seed).shuffle(order)
    return order[len(order) // 10 :], order[: len(order) // 10]


def _excess(logits: Tensor, target: Tensor) -> float:
    """Mean KL of Bernoulli(target) to the student: cross-entropy minus the target's own entropy."""
    own = torch.special.entr(target) + torch.special.entr(1 - target)
    return float((binary_cross_entropy_with_logits(logits, target, reduction="none") - own).mean())


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
