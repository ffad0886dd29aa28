"""Model cards from the measured figures.

python recipes/cards.py
"""

import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from packages import tales
from twistlm.models.bundled import HERE

RECIPES = Path(__file__).parent
STARS = """## What a star is

Nobody gave stars to anything here. They are *defined* by `sentiment`: with x = log p(positive) − log p(negative) of a
text, P(at most k stars) = sigmoid((c_k − x) / s). The cuts c = {cuts} are the quintiles of x over tweets weighted so
that the three classes are level, and s is an eighth of the distance of the outer ones. This network has learnt to give
those five probabilities at once.

"""


def main() -> None:
    """Write every card."""
    cards = {"stories": _stories, "toxicity": _toxicity, "sentiment": _sentiment, "stars": _stars}
    for name, fields in cards.items():
        template = Template((RECIPES / "cards" / f"{'sentiment' if name == 'stars' else name}.md").read_text())
        (HERE / name / "README.md").write_text(template.substitute(fields()))


def _figures(name: str) -> Any:
    return json.loads((RECIPES / "figures" / f"{name}.json").read_text())


def _stories() -> dict[str, str]:
    found, corpus = _figures("stories"), _figures("corpus")
    judged = found["log-likelihood under SmolLM2, nats per token"]
    return {
        "parameters": _parameters("stories"),
        "corpus_stories": f"{corpus['stories']:,}",
        "corpus_words": f"{corpus['words']:,}",
        "corpus_topics": str(corpus["topics"]),
        "corpus_rude": f"{corpus['rude']:,}",
        "corpus_sha256": corpus["sha256"],
        "temperature": str(corpus["settings"]["temperature"]),
        "tales_words": f"{sum(len(tale.split()) for tale in tales()):,}",
        "held_out_loss": f"{found['held-out loss, nats per token']:.3f}",
        "perplexity": f"{found['held-out perplexity']:.1f}",
        "texts": str(max(each["n"] for each in judged.values())),
        "judged": _table(
            ("texts", "nats per token", "95 % interval"),
            [(name, f"{each['value']:.2f}", _interval(each, ".2f")) for name, each in judged.items()],
        ),
        "samples": "\n".join(f"{i}. {_quoted(text)}" for i, text in enumerate(found["samples"], 1)),
        "rates": _rates(),
    }


def _rates() -> str:
    found = _figures("base_rates")
    story, review = found["story"], found["review"]
    rows = [("mean p(toxic)", f"{story['mean p(toxic)']['value']:.4f}", _interval(story["mean p(toxic)"]))]
    for threshold, each in story["P[p(toxic) > threshold]"].items():
        rows.append((f"P[p(toxic) > {threshold}]", f"{each['share']:.1e} ({each['count']:,})", _interval(each)))
    graded = [(f"mean p({label})", f"{p['value']:.3f}", _interval(p)) for label, p in review["mean p(class)"].items()]
    headings = ("", "", "95 % interval")
    return (
        f"{_quoted(story['prompt'])}, {story['tokens']} more tokens, {story['samples']:,} samples, by `toxicity`:\n\n"
        f"{_table(headings, rows)}\n\n"
        f"{_quoted(review['prompt'])}, {review['tokens']} more, {review['samples']:,} samples, by `sentiment`:\n\n"
        f"{_table(headings, graded)}"
    )


def _interval(fields: dict[str, float], digits: str = ".2g") -> str:
    return f"[{fields['low']:{digits}}, {fields['high']:{digits}}]"


def _toxicity() -> dict[str, str]:
    found = _figures("toxicity")
    rows = []
    for source, each in found["held out"].items():
        own = format(each["student's mean"], ".3f")
        for teacher in ("BiLSTM", "profanity", "both"):
            against = each[teacher]
            auc = against["AUC"]
            rows.append(
                (source, f"{each['texts']:,}", teacher, f"{against['mean']:.3f}", own,
                 f"{against['over 0.5']:,}", "–" if auc is None else f"{auc:.3f}",
                 f"{against['calibration error']:.3f}", f"{against['correlation of logits']:.2f}")
            )  # fmt: skip
    headings = (
        "source", "texts", "teacher", "its mean", "student's mean", "teacher > 0.5", "AUC", "calibration error",
        "correlation of logits",
    )  # fmt: skip
    disagreements = [
        (each["from"], *(f"{each[who]:.2f}" for who in ("BiLSTM", "profanity", "student")), _quoted(each["text"][:120]))
        for each in found["disagreements"]
    ]
    return {
        "parameters": _parameters("toxicity"),
        "figures": _table(headings, rows),
        "disagreements": _table(("source", "BiLSTM", "profanity", "student", "text"), disagreements),
    }


def _sentiment() -> dict[str, str]:
    found = _figures("sentiment")
    names = {
        "sentiment": "this model",
        "teacher": "its teacher, MiniLM fine-tuned",
        "majority": "class frequencies alone",
    }
    return {
        "name": "sentiment",
        "what": "How a text feels: negative, neutral or positive.",
        "label": "positive",
        "parameters": _parameters("sentiment"),
        "definition": "",
        "figures": _graded({text: found[name] for name, text in names.items()}),
    }


def _stars() -> dict[str, str]:
    found = _figures("sentiment")["stars"]
    cuts = ", ".join(f"{cut:.2f}" for cut in found["cuts"])
    return {
        "name": "stars",
        "what": "How a text feels, on five grades.",
        "label": "5 stars",
        "parameters": _parameters("stars"),
        "definition": STARS.format(cuts=cuts),
        "figures": _graded({"this model, against the definition": found}),
    }


def _graded(rows: dict[str, dict[str, float]]) -> str:
    return _table(
        ("", "accuracy", "log-loss, nats"),
        [(name, f"{each['accuracy']:.3f}", f"{each['log-loss']:.3f}") for name, each in rows.items()],
    )


def _parameters(name: str) -> str:
    config = AutoConfig.from_pretrained(HERE / name)
    kind = AutoModelForCausalLM if name == "stories" else AutoModelForSequenceClassification
    return f"{kind.from_config(config).num_parameters():,}"


def _table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _quoted(text: str) -> str:
    """A text as code: nothing in it is Markdown."""
    return "`" + " ".join(text.split()).replace("`", "'") + "`"


if __name__ == "__main__":
    main()
