"""The probability of a label under any Hugging Face sequence classifier."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor
from torch.nn.functional import logsigmoid

from twistlm.core.errors import ConfigError
from twistlm.core.plain import make_plain
from twistlm.core.registry import register
from twistlm.models.base import BaseLM, Prompts
from twistlm.potentials.base import check_beta
from twistlm.potentials.scorer import ScorerModel, check_batch_size, of_scorer, scorer
from twistlm.potentials.texts import Of, Pair, TextPotential

# What transformers calls the label of a single logit that nobody has named.
UNNAMED = "LABEL_0"


@register("potential", "classifier")
@dataclass(frozen=True)
class Classifier(TextPotential):
    """p(label | text)^beta under an `AutoModelForSequenceClassification` with its own tokenizer.

    The model is loaded when a target first needs it, once per process. p(label) is a softmax over the labels; a
    sigmoid of the label's logit if the model's `problem_type` is "multi_label_classification" or it has a
    single logit. Texts are truncated to the model's maximal length as its tokenizer does it.

    A classifier of pairs, `of="chat"`, reads prompt and answer: through its tokenizer's chat template if it has one
    (what is too long loses its beginning), else as a pair of texts, of which the first is what the user said last.

    Attributes:
        model: bundled name (`twistlm list classifier`), hub name, folder, or a loaded pair (model, tokenizer).
        label: a label's name (case does not matter) or its index. For a single logit whose meaning `logit_means`
            gives, any name if the model itself calls it nothing ("LABEL_0").
        beta: the power, > 0.
        logit_means: for a model with a single logit; needed unless the label is its `id2label[0]`. "label" if
            a high logit means the label, "not label" if a low one does (ToxicityModel and "toxic").
        batch_size: distinct texts per forward pass at most, fewer where they are long; they are sorted by length first.
        of: what is classified, "text" (prompt and continuation together), "continuation" or "chat" (the pair of
            both); None means the continuation after a chat and the text after a plain prompt.
        device: torch device; None means CUDA if there is one. A loaded pair stays where it is.

    Raises:
        ConfigError: beta, `logit_means`, `of` or the batch size is out of range.
    """

    model: ScorerModel
    label: str | int
    beta: float = 1.0
    logit_means: Literal["label", "not label"] | None = None
    batch_size: int = 128
    of: Of | None = None
    device: str | None = None
    log_upper_bound = 0.0
    reads_pairs = True
    scores_prefixes = True

    def __post_init__(self) -> None:
        """Check what can be checked without loading the model."""
        make_plain(self)
        self.check_of()
        check_beta(self.beta)
        if isinstance(self.model, Path):
            object.__setattr__(self, "model", str(self.model))
        if self.logit_means not in (None, "label", "not label"):
            raise ConfigError(f"logit_means must be 'label', 'not label' or None, not {self.logit_means!r}")
        check_batch_size(self.batch_size)

    def bind(self, lm: BaseLM) -> Self:
        """A copy that reads sequences of `lm`; from here on the model is loaded and known to have the label.

        Raises:
            ModelError: the model cannot be loaded, or has no classification head.
            ConfigError: it has no such label, or cannot tell a prompt from an answer and is to score pairs of them.
        """
        loaded = scorer(self.model, self.device)
        self._index(loaded.config)
        if self.of == "chat":
            loaded.check_pairs()
        return super().bind(lm)

    def identified_by(self) -> Any:
        """Its arguments, with the classifier's content for its name."""
        return {**super().identified_by(), "model": of_scorer(self.model)}

    def log_phi_texts(self, texts: list[str] | list[Pair]) -> Tensor:
        """beta · log p(label), float64 [B].

        Raises:
            ModelError: the model cannot be loaded, or has no classification head.
            ConfigError: it has no such label.
        """
        return self.beta * self.log_score(texts)

    def log_score(self, texts: list[str] | list[Pair]) -> Tensor:
        """log p(label) without the power, float64 [B]."""
        loaded = scorer(self.model, self.device)
        index = self._index(loaded.config)
        logits = loaded.logits(texts, self.batch_size)
        if loaded.config.num_labels == 1:
            return logsigmoid(-logits[:, 0] if self.logit_means == "not label" else logits[:, 0])
        if loaded.config.problem_type == "multi_label_classification":
            return logsigmoid(logits[:, index])
        return logits.log_softmax(-1)[:, index]

    def logit_texts(self, texts: list[str] | list[Pair]) -> Tensor:
        """The model's own output for the label, float64 [B]: no sign, softmax or power."""
        loaded = scorer(self.model, self.device)
        return loaded.logits(texts, self.batch_size)[:, self._index(loaded.config)]

    def logit(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """`logit_texts` of every sequence, float64 [B]."""
        return self.map_texts(prompts, tokens, self.logit_texts)

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
