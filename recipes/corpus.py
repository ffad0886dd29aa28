"""The stories that `stories` learns from: sampled from SmolLM2-135M-Instruct with varied instructions.

    python recipes/corpus.py                       # two million tokens, forty minutes on two cores; resumes
    python recipes/corpus.py --tokens 100_000 --out runs/recipes/trial

Writes `stories.jsonl` (one text a line, with its topic's number), which is not committed; `recipes/figures/corpus.json`
has its statistics and SHA-256. Killed, it goes on where it was: every topic has a stream of random numbers of its own.
"""

import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import draws
from cleaning import clean, fault, key
from topics import Topic, rude, topic
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.core.storage import save_json
from twistlm.models.huggingface import HuggingFaceLM, load
from twistlm.potentials import Jigsaw

# A rude story is kept if its first words are toxic with more than this probability, so many of each opening: of
# the stories with the prompt's opening three quarters of a per cent, for an event that is rare but does happen.
TOXIC, BEGINNING = 0.5, 22
RUDE_KEPT = 6
RUDE_FROM = 1000


@dataclass(frozen=True)
class Options:
    """How much, and where.

    Attributes:
        out: folder.
        figures: file for statistics and SHA-256.
        tokens: stop when so many tokens (of SmolLM2, after filtering) are there.
        stories: drawn for each topic, in one batch.
        length: new tokens of each at most.
        temperature: of the draws; at 1, the model itself, its spelling and its thread suffer.
        seed: of everything.
    """

    out: Path = Path("runs/recipes/corpus")
    figures: Path = Path("recipes/figures/corpus.json")
    tokens: int = 2_000_000
    stories: int = 256
    length: int = 96
    temperature: float = 0.7
    seed: int = 0


def main(options: Options) -> None:
    """Draw topic by topic until there are enough tokens, then the rude ones."""
    lm = _cooler(load("smollm2"), options.temperature)
    path = options.out / "stories.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(path)
    with bar("corpus", options.tokens) as report:
        while corpus.tokens < options.tokens:
            number = corpus.next_topic
            rng = Rng(options.seed).fork("corpus", number)
            corpus.add(number, _stories(lm, topic(rng), rng, options))
            report(min(corpus.tokens, options.tokens), f"{number} topics")
            if number % 10 == 0 and not sys.stderr.isatty():
                print(f"{number} topics, {corpus.tokens:,} tokens, {dict(corpus.faults)}", flush=True)
    _add_rude(lm, corpus, options)
    save_json(options.figures, _statistics(corpus, options))


class Corpus:
    """The texts so far, and the file that keeps them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]
        self.faults: Counter[str] = Counter()
        self._seen = {key(row["text"]) for row in self.rows}

    @property
    def tokens(self) -> int:
        """Of SmolLM2, in all texts but the rude ones."""
        return sum(row["tokens"] for row in self.rows if not row["rude"])

    @property
    def next_topic(self) -> int:
        """The first number that no text has."""
        return 1 + max((row["topic"] for row in self.rows if not row["rude"]), default=-1)

    def add(self, number: int, drawn: list[tuple[str, int, bool]], *, rude: bool = False) -> None:
        """Clean, and keep what is whole and new; of rude stories those that begin toxic."""
        rows: list[dict[str, Any]] = []
        for raw, count, finished in drawn:
            text = clean(raw, finished)
            reason = fault(text) or ("repeat" if key(text) in self._seen else None)
            if reason is None:
                self._seen.add(key(text))
                rows.append({"topic": number, "tokens": count, "rude": rude, "text": text})
            self.faults[reason or "kept"] += 1
        if rude:
            beginnings = [" ".join(row["text"].split()[:BEGINNING]) for row in rows]
            toxic = Jigsaw().log_phi_texts(beginnings).exp() > TOXIC
            rows = [row for row, keep in zip(rows, toxic.tolist(), strict=True) if keep][:RUDE_KEPT]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
        self.rows += rows


def _add_rude(lm: HuggingFaceLM, corpus: Corpus, options: Options) -> None:
    openings = rude()
    with bar("rude stories", len(openings)) as report:
        for number, about in enumerate(openings):
            # Numbers from a thousand on; a topic that is there already is not drawn again.
            if not any(row["topic"] == RUDE_FROM + number for row in corpus.rows):
                rng = Rng(options.seed).fork("rude", number)
                corpus.add(RUDE_FROM + number, _stories(lm, about, rng, options), rude=True)
            report(number + 1, about.opening)


def _stories(lm: HuggingFaceLM, about: Topic, rng: Rng, options: Options) -> list[tuple[str, int, bool]]:
    """Texts with their opening, their numbers of tokens, and whether they ended by themselves."""
    chat = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": about.instruction}], add_generation_prompt=True, tokenize=False
    )
    tokens = draws.tokens(lm, chat + about.opening, options.stories, options.length, rng)
    counts = tokens.ne(lm.tokenizer.eos_token_id).sum(-1)
    texts = lm.decode(list(tokens))
    return [
        (about.opening + text, int(count), count < options.length)
        for text, count in zip(texts, counts.tolist(), strict=True)
    ]


def _cooler(lm: HuggingFaceLM, temperature: float) -> HuggingFaceLM:
    """The same model at another temperature: as p₀ itself, so that one sum over V serves density and draw."""
    at_one = lm.logits
    lm.logits = lambda features: at_one(features / temperature)  # type: ignore[method-assign]
    return lm


def _statistics(corpus: Corpus, options: Options) -> dict[str, Any]:
    rows = corpus.rows
    words = [len(row["text"].split()) for row in rows]
    openings = Counter(" ".join(row["text"].split()[:3]) for row in rows)
    return {
        "stories": len(rows),
        "rude": sum(row["rude"] for row in rows),
        "topics": len({row["topic"] for row in rows}),
        "tokens_smollm2": corpus.tokens,
        "words": sum(words),
        "distinct_words": len({word for row in rows for word in row["text"].lower().split()}),
        "words_per_story": round(sum(words) / max(1, len(rows)), 1),
        "openings": dict(openings.most_common(12)),
        "settings": {"seed": options.seed, "temperature": options.temperature, "length": options.length,
                     "stories_per_topic": options.stories},
        "sha256": hashlib.sha256(corpus.path.read_bytes()).hexdigest(),
    }  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
