"""The probability of a label under any Hugging Face sequence classifier."""

import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from twistlm.core.errors import ConfigError, ModelError
from twistlm.core.registry import available, register
from twistlm.models.base import BaseLM, Prompts
from twistlm.models.local import contents
from twistlm.potentials.base import TextPotential, check_beta

# What transformers calls the label of a single logit that nobody has named.
UNNAMED = "LABEL_0"


@register("potential", "classifier")
@dataclass(frozen=True)
class Classifier(TextPotential):
    """p(label | text)^beta under an `AutoModelForSequenceClassification` with its own tokenizer.

    The model is loaded when a target first needs it, once per process. p(label) is a softmax over the labels; a
    sigmoid of the label's logit if the model's `problem_type` is "multi_label_classification" or it has a
    single logit. Texts are truncated to the model's maximal length as its tokenizer does it.

    Attributes:
        model: bundled name (`twistlm list classifier`), hub name, folder, or a loaded pair (model, tokenizer).
        label: a label's name (case does not matter) or its index. For a single logit whose meaning `logit_means`
            gives, any name if the model itself calls it nothing ("LABEL_0").
        beta: the power, > 0.
        logit_means: for a model with a single logit; needed unless the label is its `id2label[0]`. "label" if
            a high logit means the label, "not label" if a low one does (ToxicityModel and "toxic").
        batch_size: distinct texts per forward pass; they are sorted by length first.
        include_prompt: classify prompt and continuation together; False for the continuation alone.
        device: torch device; None means CUDA if there is one. A loaded pair stays where it is.

    Raises:
        ConfigError: beta, `logit_means` or the batch size is out of range.
    """

    model: str | Path | tuple[Any, Any]
    label: str | int
    beta: float = 1.0
    logit_means: Literal["label", "not label"] | None = None
    batch_size: int = 32
    include_prompt: bool = True
    device: str | None = None
    log_upper_bound = 0.0

    def __post_init__(self) -> None:
        """Check what can be checked without loading the model."""
        check_beta(self.beta)
        if isinstance(self.model, Path):
            object.__setattr__(self, "model", str(self.model))
        if self.logit_means not in (None, "label", "not label"):
            raise ConfigError(f"logit_means must be 'label', 'not label' or None, not {self.logit_means!r}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {self.batch_size}")

    def bind(self, lm: BaseLM) -> Self:
        """A copy that reads sequences of `lm`; from here on the model is loaded and known to have the label.

        Raises:
            ModelError: the model cannot be loaded, or has no classification head.
            ConfigError: it has no such label.
        """
        self._index(self._parts()[0].config)
        return super().bind(lm)

    def identified_by(self) -> Any:
        """Its arguments, with the classifier's content for its name."""
        return {**super().identified_by(), "model": of_classifier(self.model)}

    def log_phi_texts(self, texts: list[str]) -> Tensor:
        """beta · log p(label), float64 [B].

        Raises:
            ModelError: the model cannot be loaded, or has no classification head.
            ConfigError: it has no such label.
        """
        return self.beta * self.log_score(texts)

    def log_score(self, texts: list[str]) -> Tensor:
        """log p(label) without the power, float64 [B]."""
        network, _ = self._parts()
        index = self._index(network.config)
        logits = self._logits(texts)
        if network.config.num_labels == 1:
            return logsigmoid(-logits[:, 0] if self.logit_means == "not label" else logits[:, 0])
        if network.config.problem_type == "multi_label_classification":
            return logsigmoid(logits[:, index])
        return logits.log_softmax(-1)[:, index]

    def logit_texts(self, texts: list[str]) -> Tensor:
        """The model's own output for the label, float64 [B]: no sign, softmax or power."""
        return self._logits(texts)[:, self._index(self._parts()[0].config)]

    def logit(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """`logit_texts` of every sequence, float64 [B]."""
        return self.map_texts(prompts, tokens, self.logit_texts)

    def _parts(self) -> tuple[Any, Any]:
        return self.model if isinstance(self.model, tuple) else _load(str(self.model), self.device)

    def _index(self, config: Any) -> int:
        """The label's position among the model's logits."""
        names = {int(i): str(name) for i, name in config.id2label.items()}
        single = config.num_labels == 1
        if self.logit_means is not None and not single:
            raise ConfigError(f"logit_means is for models with one logit; this one has {len(names)} labels")
        if self.logit_means is not None and names[0] == UNNAMED:
            return 0
        found = [i for i, name in names.items() if self.label == i or str(self.label).lower() == name.lower()]
        if found:
            return found[0]
        listed = ", ".join(f"{i} {name!r}" for i, name in names.items())
        remedy = (
            "say what its single logit means: logit_means='label' or 'not label'"
            if single and names[0] == UNNAMED
            else "choose one of them"
        )
        raise ConfigError(f"unknown label {self.label!r}; the model's labels are {listed}: {remedy}")

    @torch.no_grad()
    def _logits(self, texts: list[str]) -> Tensor:
        """All logits, float64 [B, labels], in length-sorted batches."""
        network, tokenizer = self._parts()
        network.eval()
        limit = _max_length(network, tokenizer)
        encoded = tokenizer(texts, truncation=limit is not None, max_length=limit)
        order = sorted(range(len(texts)), key=lambda i: len(encoded["input_ids"][i]))
        # Without a padding token (GPT-2) texts cannot share a batch.
        size = self.batch_size if tokenizer.pad_token_id is not None else 1
        logits = torch.empty(len(texts), network.config.num_labels, dtype=torch.float64)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            rows = {name: [values[i] for i in chosen] for name, values in encoded.items()}
            batch = tokenizer.pad(rows, padding=size > 1, return_tensors="pt").to(network.device)
            logits[chosen] = network(**batch).logits.double().cpu()
        return logits


def of_classifier(model: str | Path | tuple[Any, Any]) -> Any:
    """What identifies a classifier: the content of its folder, or of the loaded pair."""
    return model if isinstance(model, tuple) else contents("classifier", str(model))


def _max_length(network: Any, tokenizer: Any) -> int | None:
    """The most tokens that both the model and its tokenizer declare, None if neither does."""
    limits = [tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", None)]
    # Tokenizers without a limit declare 10^30.
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < 10**9]
    return min(known, default=None)


@lru_cache(maxsize=2)
def _load(name: str, device: str | None) -> tuple[Any, Any]:
    """The classifier and its tokenizer.

    Raises:
        ModelError: they cannot be found, or the checkpoint has no classification head.
    """
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
    except (OSError, ValueError) as error:
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
    return for_inference(network, torch.float32), tokenizer
