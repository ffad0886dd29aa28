"""Toxicity of comments, by weights that a Python package ships: no download from a hub."""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError
from twistlm.core.identity import Files
from twistlm.core.kernels.threads import side_by_side
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.models.base import Prompts
from twistlm.potentials._bilstm import LABELS, BiLSTM, WordTokenizer, packaged_folder
from twistlm.potentials.base import check_beta
from twistlm.potentials.texts import Of, TextPotential

WEIGHTS, TOKENIZER = "model.weights.h5", "tokenizer.pickle"


@register("potential", "jigsaw")
@dataclass(frozen=True)
class Jigsaw(TextPotential):
    """p(label)^beta under a packaged BiLSTM trained on the Jigsaw toxic comments.

    The weights are those of the PyPI package toxic-comment-classifier 0.3.0, loaded at the first evaluation.
    Only the last 100 known words of a text count.

    Attributes:
        label: "toxic", "severe_toxic", "obscene", "threat", "insult" or "identity_hate", in any case.
        beta: the power, > 0.
        of: what is scored, "text" (prompt and continuation together) or "continuation"; None means the continuation
            after a chat and the text after a plain prompt.
        batch_size: distinct texts per forward pass.

    Raises:
        ConfigError: the label or `of` is unknown, beta is not positive, or the batch size is not.
    """

    label: str = "toxic"
    beta: float = 1.0
    of: Of | None = None
    batch_size: int = 128
    log_upper_bound = 0.0
    scores_prefixes = True

    def __post_init__(self) -> None:
        """Check the settings."""
        make_plain(self)
        self.check_of()
        check_beta(self.beta)
        if self.label.lower() not in LABELS:
            raise ConfigError(f"unknown label {self.label!r}; choose one of: {', '.join(LABELS)}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {self.batch_size}")

    def identified_by(self) -> Any:
        """Its arguments and the packaged weights."""
        folder = packaged_folder()
        return [super().identified_by(), *[Files(folder / name) for name in (WEIGHTS, TOKENIZER)]]

    def logit_texts(self, texts: list[str]) -> Tensor:
        """The label's logit, float64 [B]."""
        return score_texts(texts, self.batch_size)[:, LABELS.index(self.label.lower())].double()

    def logit(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """The label's logit of every sequence, float64 [B]."""
        return self.map_texts(prompts, tokens, self.logit_texts)

    def log_phi_texts(self, texts: list[str]) -> Tensor:
        """beta · log p(label), float64 [B].

        Raises:
            ModelError: the package or h5py is not installed.
        """
        return self.beta * torch.nn.functional.logsigmoid(self.logit_texts(texts))


@torch.no_grad()
def score_texts(texts: list[str], batch_size: int = 128) -> Tensor:
    """The logits of all six labels, float32 [B, 6]; texts with the same known words are scored once.

    Raises:
        ModelError: the package or h5py is not installed.
    """
    tokenizer, network = _load()
    encoded = [tuple(tokenizer(text)) for text in texts]
    # Sorted by length, a batch pays for both directions only up to its own longest text.
    order = sorted(set(encoded), key=len)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    logits = torch.cat([torch.empty(0, len(LABELS)), *side_by_side(partial(network, batch) for batch in batches)])
    index = {words: i for i, words in enumerate(order)}
    return logits[[index[words] for words in encoded]]


@lru_cache(maxsize=1)
def _load() -> tuple[WordTokenizer, BiLSTM]:
    folder = packaged_folder()
    return WordTokenizer(folder / TOKENIZER), BiLSTM(folder / WEIGHTS)
