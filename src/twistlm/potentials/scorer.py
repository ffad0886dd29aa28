"""Networks that score texts or pairs of prompt and answer: what `Classifier` and `Reward` share."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, ModelError, PromptError
from twistlm.core.kernels.threads import side_by_side
from twistlm.core.memory import in_pieces
from twistlm.core.registry import available
from twistlm.models.chats import render
from twistlm.models.local import contents
from twistlm.potentials.texts import Pair

# Tokens in a pass: of short texts many together, since a product of few rows is slow, and of long ones few, for memory.
PASS_TOKENS = 4096

ScorerModel = str | Path | tuple[Any, Any]
"""A bundled name, a hub name, a folder, or a loaded pair (model, tokenizer)."""


@dataclass(frozen=True)
class Scorer:
    """A sequence classifier of transformers, with its own tokenizer.

    Attributes:
        network: an `AutoModelForSequenceClassification`.
        tokenizer: its tokenizer.
    """

    network: Any
    tokenizer: Any

    @property
    def config(self) -> Any:
        """The network's configuration."""
        return self.network.config

    def check_pairs(self) -> None:
        """Raise ConfigError unless it reads a prompt and an answer as two things: it was not made for them."""
        if not (self._has_template or self._parts_pairs):
            raise ConfigError(
                "of='chat': this scorer's tokenizer has no chat template and puts nothing between two texts; give it a "
                "chat_template, or score of='text' or of='continuation'"
            )

    @torch.no_grad()
    def logits(self, read: Sequence[str | Pair], batch_size: int) -> Tensor:
        """All logits, float64 [B, labels], in length-sorted batches.

        Raises:
            ConfigError: pairs, which its tokenizer cannot tell from texts.
            PromptError: a pair without a prompt, or one that its chat template refuses.
        """
        self.network.eval()
        encoded = self._encoded(read)
        order = sorted(range(len(read)), key=lambda i: len(encoded["input_ids"][i]))
        # Without a padding token (GPT-2) texts cannot share a batch; a decoder looks for its last token before those
        # that its own configuration calls padding.
        padding = self.tokenizer.pad_token_id
        size = batch_size if padding is not None and padding == getattr(self.config, "pad_token_id", None) else 1
        logits = torch.empty(len(read), self.config.num_labels, dtype=torch.float64)
        chunks = list(passes(order, [len(tokens) for tokens in encoded["input_ids"]], size))
        found = [partial(self._in_pieces, encoded, chosen, size > 1) for chosen in chunks]
        each = side_by_side(found, when=self.network.device.type == "cpu")
        for chosen, values in zip(chunks, each, strict=True):
            logits[chosen] = values
        return logits

    def _in_pieces(self, encoded: Any, chosen: Sequence[int], padding: bool) -> Tensor:
        """Logits of the chosen texts, in one pass if memory suffices."""
        return in_pieces(partial(self._scored, encoded, chosen, padding), len(chosen), "scoring texts")

    def _scored(self, encoded: Any, chosen: Sequence[int], padding: bool, part: slice) -> Tensor:
        """Logits of some of the chosen texts in one pass."""
        rows = {name: [values[i] for i in chosen[part]] for name, values in encoded.items()}
        batch = self.tokenizer.pad(rows, padding=padding, return_tensors="pt").to(self.network.device)
        found: Tensor = self.network(**batch).logits.double().cpu()
        return found

    def _encoded(self, read: Sequence[str | Pair]) -> Any:
        """Token ids and masks of each."""
        limit, pairs = self._max_length, [each for each in read if isinstance(each, Pair)]
        if not pairs:
            return self._filled(self.tokenizer(list(read), truncation=limit is not None, max_length=limit))
        self.check_pairs()
        if any(not pair.question.strip() for pair in pairs):
            raise PromptError("of='chat' scores an answer to a prompt, and this prompt has no text; give it one")
        if not self._has_template:
            prompts, answers = [pair.question for pair in pairs], [pair.answer for pair in pairs]
            return self.tokenizer(prompts, text_pair=answers, truncation=limit is not None, max_length=limit)
        rendered = [render(self.tokenizer, pair.messages, answering=False) for pair in pairs]
        # The end stays, which is the answer.
        cut = slice(None if limit is None else -limit, None)
        return {name: [each[name][cut] for each in rendered] for name in rendered[0]}

    def _filled(self, encoded: Any) -> Any:
        """The same with a token for each empty text, of which a tokenizer without special tokens makes none."""
        if not all(encoded["input_ids"]):
            known = (getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad"))
            token = next((each for each in known if each is not None), 0)
            one = {"input_ids": token, "attention_mask": 1}
            for row in [at for at, ids in enumerate(encoded["input_ids"]) if not ids]:
                for name in encoded:
                    encoded[name][row] = [one.get(name, 0)]
        return encoded

    @property
    def _has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    @property
    def _parts_pairs(self) -> bool:
        """Whether the tokenizer puts something between the texts of a pair."""
        count = getattr(self.tokenizer, "num_special_tokens_to_add", None)
        return count is not None and count(pair=True) > count(pair=False)

    @property
    def _max_length(self) -> int | None:
        """The most tokens that both the network and its tokenizer declare, None if neither does."""
        limits = [self.tokenizer.model_max_length, getattr(self.config, "max_position_embeddings", None)]
        # Tokenizers without a limit declare 10^30.
        known = [int(limit) for limit in limits if limit is not None and 0 < limit < 10**9]
        return min(known, default=None)


def passes(order: Sequence[int], lengths: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Texts in `order`, the shorter ones first, in passes of at most `size` texts and about `PASS_TOKENS` tokens."""
    start = 0
    for at in range(1, len(order) + 1):
        full = at - start == size or (at < len(order) and (at - start + 1) * lengths[order[at]] > PASS_TOKENS)
        if full or at == len(order):
            yield order[start:at]
            start = at


def scorer(model: ScorerModel, device: str | None) -> Scorer:
    """The scorer of that name, loaded once per process, or of a loaded pair.

    Raises:
        ModelError: it cannot be found, or the checkpoint has no classification head.
    """
    return Scorer(*model) if isinstance(model, tuple) else _load(str(model), device)


def of_scorer(model: ScorerModel) -> Any:
    """What identifies a scorer: the content of its folder, or of the loaded pair."""
    return model if isinstance(model, tuple) else contents("classifier", str(model))


def check_batch_size(batch_size: int) -> None:
    """Raise ConfigError unless it is positive."""
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, not {batch_size}")


# More than anyone puts together; a process that sees others after one another does not keep them all.
@lru_cache(maxsize=8)
def _load(name: str, device: str | None) -> Scorer:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from twistlm.models.local import safely, usable_device
    from twistlm.models.packaged import without_progress_bars
    from twistlm.models.packing import for_inference

    bundled = available("classifier")
    source: str | Path = bundled[name].value() if name in bundled else name
    try:
        with warnings.catch_warnings(), without_progress_bars():
            warnings.simplefilter("ignore")
            place, how = safely(source)
            tokenizer = AutoTokenizer.from_pretrained(place, **how)
            # However the weights are stored: the difference of two scores should not drown in half precision.
            network, info = AutoModelForSequenceClassification.from_pretrained(
                place, output_loading_info=True, dtype=torch.float32, **how
            )
    except (OSError, ValueError, UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"cannot load the classifier {name!r} ({reason}): give a folder, or a hub name and a network; "
            f"bundled classifiers: {', '.join(bundled)}"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{name!r} is not a sequence classifier: it has no weights for {', '.join(missing[:3])}, "
            "and random ones would score at random"
        )
    network = network.to(usable_device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    return Scorer(for_inference(network, torch.float32), tokenizer)
