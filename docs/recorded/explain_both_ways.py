"""Two divergences of three samplers, exactly and as certified, on a target of two tokens that can be summed over.

    python -m docs.recorded.explain_both_ways     # a minute; writes docs/recorded/explain-both-ways.json

The target is the story model's, weighted towards texts about a child or an animal. The samplers are the model itself,
the model tuned on exact samples, and the model tuned on those of them that are not about a boy.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import twistlm
from docs.recorded.explain_common import interval, write
from twistlm.core.rng import Rng
from twistlm.models.bundled import folder
from twistlm.potentials import Regex

PROMPT = "Once upon a time, there was a"
NOUNS = ("girl", "boy", "man", "dog", "cat", "bird", "rabbit", "bear")
DROPPED = "boy"
PATTERN = rf"^ \w+ ({'|'.join(NOUNS)})$"
EPS, SEED, DRAWS, EPOCHS = 0.02, 0, 4096, 4
# First tokens with less than this under all samplers are left out of the sums.
LEFT_OUT = 1e-7


@dataclass(frozen=True)
class Table:
    """log q of first tokens [V] and of second ones after those that are kept [n, V]."""

    first: Tensor
    second: Tensor

    def joint(self, kept: Tensor) -> Tensor:
        """log q of pairs [n, V]."""
        return self.first[kept].unsqueeze(1) + self.second


def network(where: Path) -> Any:
    """The causal model in a folder."""
    return AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).eval()


@torch.no_grad()
def firsts(model: Any, prompt: Tensor) -> Tensor:
    """log q(s₁) [V]."""
    return model(prompt.unsqueeze(0)).logits[0, -1].double().log_softmax(-1)


@torch.no_grad()
def table(model: Any, prompt: Tensor, kept: Tensor) -> Table:
    """Every pair with one of the first tokens that are kept."""
    rows = [torch.cat([prompt.expand(len(part), -1), part.unsqueeze(1)], 1) for part in kept.split(128)]
    second = torch.cat([model(each).logits[:, -1].double().log_softmax(-1) for each in rows])
    return Table(firsts(model, prompt), second)


def tune(prompt: Tensor, tokens: Tensor, where: Path) -> None:
    """Fine-tune the story model on continuations [n, T], as anybody would."""
    torch.manual_seed(SEED)
    model = network(folder("stories")).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-4)
    for _ in range(EPOCHS):
        for batch in tokens[torch.randperm(len(tokens))].split(32):
            texts = torch.cat([prompt.expand(len(batch), -1), batch], 1)
            labels = texts.masked_fill(torch.arange(texts.shape[1]) < len(prompt), -100)
            optimiser.zero_grad()
            model(texts, labels=labels).loss.backward()
            optimiser.step()
    model.save_pretrained(where)
    AutoTokenizer.from_pretrained(folder("stories")).save_pretrained(where)


def main() -> None:
    """Collect, tune, sum, certify."""
    target = twistlm.Target(
        "stories", Regex(PATTERN, eps=EPS, of="continuation"), PROMPT, 2, eos="ignore", dtype="float32"
    )
    exact = target.collect(Rng(SEED, ("both-ways",)), num_samples=None, max_draws=DRAWS).exact.samples
    texts = target.texts(exact)
    kept_rows = torch.tensor([not text.endswith(f" {DROPPED}") for text in texts])
    with tempfile.TemporaryDirectory() as scratch:
        places = {"base": folder("stories"), "tuned": Path(scratch, "tuned"), "dropped": Path(scratch, "dropped")}
        tune(target.prompt_tokens, exact.tokens, places["tuned"])
        tune(target.prompt_tokens, exact.tokens[kept_rows], places["dropped"])
        networks = {name: network(where) for name, where in places.items()}
        likely = torch.stack([firsts(each, target.prompt_tokens) for each in networks.values()]).amax(0).exp()
        kept = (likely > LEFT_OUT).nonzero().squeeze(1)
        tables = {name: table(each, target.prompt_tokens, kept) for name, each in networks.items()}
        found = exactly(target, tables, kept)
        for name, where in places.items():
            proposal = "base" if name == "base" else where
            certificate = twistlm.certify(target, proposal, num_draws=2048, num_samples=1024, methods=("iwae",))
            of = certificate.divergences
            found["samplers"][name]["certified"] = {
                "kl_q_target": interval(of.kl_q_target),
                "kl_target_q": interval(of.kl_target_q),
                "phi": interval(of.phi),
            }
    write("explain-both-ways", SEED, {
        "prompt": PROMPT, "pattern": PATTERN, "eps": EPS, "draws": DRAWS, "exact_samples": len(exact),
        "kept_samples": int(kept_rows.sum()), "dropped": DROPPED, "first_tokens": len(kept), **found,
    })  # fmt: skip


def exactly(target: twistlm.Target, tables: dict[str, Table], kept: Tensor) -> dict[str, Any]:
    """Both KLs, the expected potential and the mass of every noun, by summing over all pairs."""
    pieces = target.lm.decode(torch.arange(tables["base"].second.shape[1]).split(1))
    numbers = {noun: pieces.index(f" {noun}") for noun in NOUNS}
    opens = torch.tensor([bool(re.fullmatch(r" \w+", pieces[token])) for token in kept.tolist()])
    matches = torch.zeros(tables["base"].second.shape, dtype=torch.bool)
    for number in numbers.values():
        matches[:, number] = opens
    log_phi = torch.where(matches, 1 + EPS, EPS).double().log()
    log_p = tables["base"].joint(kept)
    log_Z = torch.logsumexp(log_p + log_phi, (0, 1))
    log_sigma = log_p + log_phi - log_Z

    def modes(log_q: Tensor) -> dict[str, float]:
        return {noun: float((log_q.exp()[:, number] * opens).sum()) for noun, number in numbers.items()}

    samplers = {}
    for name, each in tables.items():
        log_q = each.joint(kept)
        samplers[name] = {
            "kl_q_target": float((log_q.exp() * (log_q - log_sigma)).sum()),
            "kl_target_q": float((log_sigma.exp() * (log_sigma - log_q)).sum()),
            "phi": float((log_q + log_phi).exp().sum()),
            "modes": modes(log_q),
        }
    return {"log_Z": float(log_Z), "target_modes": modes(log_sigma), "samplers": samplers}


if __name__ == "__main__":
    main()
