"""How good `stories` is, by a larger model's judgement: figures and unpicked samples for its card.

python recipes/check_stories.py     # needs the corpus and the model; five minutes on two cores
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from draws import draw
from stories import held_out_loss, pack, read
from trigram import Trigram
from twistlm.core.estimates import mean
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json, save_json
from twistlm.models.huggingface import HuggingFaceLM, load

PROMPT = "Once upon a time, there was a"
# Judged: so many texts of each kind, so many of SmolLM2's tokens after the prompt.
TEXTS, JUDGED = 256, 40


@dataclass(frozen=True)
class Options:
    """Where things are.

    Attributes:
        corpus: folder that recipes/corpus.py wrote.
        model: folder of `stories`.
        out: file for the figures.
        seed: of the samples.
    """

    corpus: Path = Path("runs/recipes/corpus")
    model: Path = Path("src/twistlm/bundled/stories")
    out: Path = Path("recipes/figures/stories.json")
    seed: int = 1


def main(options: Options) -> None:
    """Measure everything, write it, print it."""
    train, held_out = read(options.corpus)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    network = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    loss = held_out_loss(network, pack(tokenizer, held_out, 256))
    rng = Rng(options.seed)
    lm, started = load(str(options.model)), time.perf_counter()
    own = draw(lm, PROMPT, TEXTS, 60, rng.fork("stories"))
    speed = time.perf_counter() - started
    judge = load("smollm2")
    texts = {
        "SmolLM2's own samples": draw(judge, PROMPT, TEXTS, 50, rng.fork("smollm2")),
        "SmolLM2's stories, held out": [text for text in held_out if text.startswith(PROMPT)][:TEXTS],
        "samples of stories": own,
        "trigram model of the corpus": _trigram(train, tokenizer, rng.fork("trigram")),
        "samples of stories, words shuffled": [_shuffled(text, rng.fork("shuffle", i)) for i, text in enumerate(own)],
    }
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in network.parameters()),
        "held-out loss, nats per token": loss,
        "held-out perplexity": float(torch.tensor(loss).exp()),
        "seconds for 256 samples of 60 tokens": speed,
        "log-likelihood under SmolLM2, nats per token": {},
    }
    for name, each in texts.items():
        estimate = mean(_log_likelihood(judge, each))
        found["log-likelihood under SmolLM2, nats per token"][name] = as_json(estimate)
        print(f"{name}: {estimate}", flush=True)
    found["samples"] = own[:20]
    save_json(options.out, found)
    print(json.dumps(found, indent=1))


def _trigram(train: list[str], tokenizer: Any, rng: Rng) -> list[str]:
    model = Trigram(tokenizer(train, verbose=False)["input_ids"])
    start = tokenizer(PROMPT)["input_ids"]
    return [tokenizer.decode(model.sample(rng.fork(i), start, 60)) for i in range(TEXTS)]


def _shuffled(text: str, rng: Rng) -> str:
    """The same words after the prompt, in random order."""
    words = text[len(PROMPT) :].split()
    order = rng.uniform((1, len(words)))[0].argsort().tolist() if words else []
    return " ".join([PROMPT, *(words[i] for i in order)])


@torch.no_grad()
def _log_likelihood(judge: HuggingFaceLM, texts: list[str]) -> Tensor:
    """Mean log p(token) over the first `JUDGED` tokens after the prompt, one value per text."""
    prompt = judge.encode(PROMPT)
    values = []
    with bar("judging", len(texts)) as report:
        for number, text in enumerate(texts):
            tokens = judge.encode(text)[len(prompt) : len(prompt) + JUDGED]
            if len(tokens) == 0:
                continue
            logits = judge.logits(judge.features([prompt], tokens.unsqueeze(0))[0]).float()
            values.append(logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).mean())
            report(number + 1, "")
    return torch.stack(values).double()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
