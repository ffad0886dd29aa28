"""Hard constraints that every system samples under, without importing any of them.

    σ(s) = p₀(s) φ(s) / Z,   φ(s) = 1 if the new text matches the pattern from its first to its last character, else 0,

times the classifier's probability of `label` where there is one. A text is what stands before the first EOS, or all of
the T tokens; EOS is drawn with its own probability. Patterns are in what `re`, outlines-core and interegular share.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# A classifier of its own weights, in the format of transformers, which every environment has.
CLASSIFIER = Path(__file__).parents[2] / "src" / "twistlm" / "models" / "bundled" / "sentiment"


@dataclass(frozen=True)
class Task:
    """A constraint.

    Attributes:
        title: what it is.
        prompt: the text before.
        pattern: of the new text.
        tokens: T.
        example: a text that satisfies it.
        label: the class of the sentiment classifier that is asked for, on the new text.
    """

    title: str
    prompt: str
    pattern: str
    tokens: int
    example: str
    label: str | None = None

    def satisfied(self, text: str) -> bool:
        """Whether a text matches."""
        return re.fullmatch(self.pattern, text) is not None


WORD = "[A-Z][a-z]{1,11}"
LETTERS = "[a-zA-Z,' ]*"
TASKS = {
    "date": Task(
        "a date in digits",
        "The next meeting will take place on",
        " [0-9]{4}-[0-9]{2}-[0-9]{2}",
        11,
        " 2024-03-15",
    ),
    "timestamp": Task(
        "an ISO timestamp",
        "The log entry was written at",
        " [0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z",
        21,
        " 2024-03-15T10:30:00Z",
    ),
    "json": Task(
        "JSON with three fields",
        "A person's name, age and city as a JSON object:\n",
        rf'\{{"name": "{WORD}( {WORD})?", "age": [1-9][0-9]?, "city": "{WORD}( {WORD})?"\}}',
        36,
        '{"name": "John Smith", "age": 32, "city": "New York"}',
    ),
    "email": Task(
        "an e-mail address",
        "For questions, write to the author at",
        r" [a-z]{2,12}(\.[a-z]{2,12})?@[a-z]{2,12}\.(com|org|net|edu)",
        14,
        " jane.doe@example.com",
    ),
    "words": Task(
        "a sentence with two words",
        "Once upon a time there was a boy who",
        rf"({LETTERS}[ ,])?(dog([ ,]{LETTERS})? park|park([ ,]{LETTERS})? dog)([ ,]{LETTERS})?\.",
        20,
        " took his dog to the park.",
    ),
    "json, positive": Task(
        "JSON, times sentiment",
        "A customer's product review as JSON:\n",
        r"""\{"product": "[A-Za-z ]{3,20}", "stars": [1-5], "review": "[A-Za-z ,']{10,60}[.!]"\}""",
        40,
        '{"product": "Shoes", "stars": 5, "review": "I love these shoes!"}',
        label="positive",
    ),
}


@dataclass
class Potential:
    """log φ of whole texts."""

    task: Task
    _loaded: dict[str, Any] = field(default_factory=dict)

    def log_phi(self, texts: list[str]) -> Tensor:
        """log φ [B], float64."""
        satisfied = torch.tensor([self.task.satisfied(text) for text in texts])
        log_phi = torch.zeros(len(texts), dtype=torch.float64).masked_fill(~satisfied, -torch.inf)
        if self.task.label is not None and bool(satisfied.any()):
            log_phi[satisfied] += self._log_p([text for text in texts if self.task.satisfied(text)])
        return log_phi

    @torch.inference_mode()
    def _log_p(self, texts: list[str]) -> Tensor:
        """log p(label | text) [B]."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if not self._loaded:
            self._loaded["tokenizer"] = AutoTokenizer.from_pretrained(CLASSIFIER)
            self._loaded["model"] = AutoModelForSequenceClassification.from_pretrained(CLASSIFIER).eval()
        model = self._loaded["model"]
        inputs = self._loaded["tokenizer"](texts, return_tensors="pt", padding=True, truncation=True)
        column = {name.lower(): int(number) for number, name in model.config.id2label.items()}[self.task.label]
        log_p: Tensor = model(**inputs).logits.double().log_softmax(-1)[:, column]
        return log_p
