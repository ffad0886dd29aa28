"""What a potential on texts reads: prompt and continuation together, the continuation alone, or both as a pair."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from twistlm.core.errors import ConfigError, PotentialError
from twistlm.models.base import BaseLM, Prompts
from twistlm.models.chats import Chat, chat_of
from twistlm.potentials.base import BasePotential

Of = Literal["text", "continuation", "chat"]
"""What is scored: "text" is prompt and continuation decoded together, "continuation" the new tokens alone, "chat" the
pair of prompt and answer."""


@dataclass(frozen=True)
class Pair:
    """A prompt and what the model answered.

    Attributes:
        prompt: the chat, or the text of a plain prompt.
        answer: the text of the new tokens.
    """

    prompt: Chat | str
    answer: str

    @property
    def question(self) -> str:
        """The user's last message, or the plain prompt."""
        return self.prompt.question if isinstance(self.prompt, Chat) else self.prompt

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat with the answer as its last message; a plain prompt is what a user said."""
        asked = self.prompt.described() if isinstance(self.prompt, Chat) else [{"role": "user", "content": self.prompt}]
        return [*asked, {"role": "assistant", "content": self.answer}]


class TextPotential(BasePotential):
    """A potential on the decoded text. Subclasses implement `log_phi_texts`.

    `of` says what is decoded by the bound model, special tokens skipped. By default it is prompt and continuation
    together, and after a chat the answer alone: a template's words, and the user's, are not the model's.
    """

    of: Of | None = None
    reads_pairs: ClassVar[bool] = False
    """Whether it scores pairs of prompt and answer: `log_phi_texts` is handed `Pair`s if `of` is "chat"."""

    @abstractmethod
    def log_phi_texts(self, texts: list[str]) -> Tensor:
        """log φ [B] of B distinct texts, in nats."""

    def log_phi(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """log φ, float64 [B] on the device of `tokens`; each distinct text is scored once.

        Raises:
            PotentialError: not bound to a model.
            ConfigError: `of` is unknown, or this potential reads no pairs.
        """
        return self.map_texts(prompts, tokens, self.log_phi_texts)

    def map_texts(self, prompts: Prompts, tokens: Tensor, score: Callable[[list[Any]], Tensor]) -> Tensor:
        """`score` of every sequence's text or `Pair`, float64 [B], computed once per distinct one."""
        if self.lm is None:
            raise PotentialError(
                f"{type(self).__name__} reads text and is not bound to a model: "
                "use it through twistlm.Target, or call .bind(lm) first"
            )
        self.check_of()
        read: list[Any] = read_texts(self.lm, prompts, tokens, self.of)
        index = {each: i for i, each in enumerate(dict.fromkeys(read))}
        scores = score(list(index)) if index else torch.zeros(0)
        if scores.shape != (len(index),):
            raise PotentialError(f"{type(self).__name__} returned shape {list(scores.shape)} for {len(index)} texts")
        return scores.double().to(tokens.device)[[index[each] for each in read]]

    def check_of(self) -> None:
        """Raise ConfigError unless `of` is something that this potential can read."""
        known = [each for each in get_args(Of) if each != "chat" or self.reads_pairs]
        if self.of is not None and self.of not in known:
            listed = ", ".join(repr(each) for each in known)
            raise ConfigError(f"of must be {listed} or None for {type(self).__name__}, not {self.of!r}")

    def identified_by(self) -> Any:
        """Its arguments, the default of `of` as it was written when there was only `include_prompt`.

        So files of draws are still known to be of the same target.
        """
        arguments = super().identified_by()
        if arguments.get("of", "text") in (None, "continuation"):
            arguments["include_prompt"] = arguments.pop("of") is None
        return arguments


def read_texts(lm: BaseLM, prompts: Prompts, tokens: Tensor, of: Of | None) -> list[str] | list[Pair]:
    """What a potential reads of B prompts followed by tokens [B, T]: B texts, or pairs if `of` is "chat"."""
    # Sequences share their prompts as objects, so that each is looked at once.
    distinct = {id(prompt): prompt for prompt in prompts}
    if of == "chat":
        asked = {key: chat_of(lm, prompt) or lm.decode([prompt])[0] for key, prompt in distinct.items()}
        answers = lm.decode(list(tokens))
        return [Pair(asked[id(prompt)], answer) for prompt, answer in zip(prompts, answers, strict=True)]
    heads = {
        key: prompt[:0] if of == "continuation" or (of is None and chat_of(lm, prompt) is not None) else prompt
        for key, prompt in distinct.items()
    }
    return lm.decode(_joined(prompts, tokens, heads))


def _joined(prompts: Prompts, tokens: Tensor, heads: dict[int, Tensor]) -> list[Tensor]:
    """Each row of tokens [B, T] after its prompt's head, by the prompt's `id`; prompt by prompt, not row by row."""
    places: dict[int, list[int]] = {}
    for place, prompt in enumerate(prompts):
        places.setdefault(id(prompt), []).append(place)
    joined: dict[int, Tensor] = {}
    for key, own in places.items():
        rows = tokens if len(own) == len(tokens) else tokens[own]
        rows = torch.cat([heads[key].to(tokens).expand(len(own), -1), rows], 1)
        joined.update(zip(own, rows.unbind(), strict=True))
    return [joined[place] for place in range(len(tokens))]
