"""Chats: messages between a user and an assistant, whose next answer is what a model writes."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from twistlm.core.errors import ModelError, PromptError
from twistlm.models.base import BaseLM

ROLES = ("system", "user", "assistant")
# Characters of chats that a model remembers to have read.
REMEMBERED = 64_000_000


@dataclass(frozen=True)
class Message:
    """What one side said.

    Attributes:
        role: "system", "user" or "assistant".
        content: the text.

    Raises:
        PromptError: the role is unknown, or the content is empty or not text.
    """

    role: str
    content: str

    def __post_init__(self) -> None:
        """Check both."""
        if self.role not in ROLES:
            raise PromptError(f"role {self.role!r} of a message is unknown; choose one of: {', '.join(ROLES)}")
        if not isinstance(self.content, str) or not self.content.strip():
            raise PromptError(f"content {self.content!r} of a message from the {self.role} is empty; give its text")
        if any("\ud800" <= character <= "\udfff" for character in self.content):
            raise PromptError(
                f"content {self.content!r} of a message from the {self.role} is not text: bytes that are not UTF-8 "
                "became parts of characters"
            )


@dataclass(frozen=True)
class Chat:
    """A chat that waits for an answer: it ends with the user's message.

    Attributes:
        messages: each a `Message`, or a mapping {"role": …, "content": …}.

    Raises:
        PromptError: a message is wrong, or the last is not the user's.
    """

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        """Make messages of mappings, and check how they end."""
        if not isinstance(self.messages, Sequence) or isinstance(self.messages, str):
            raise PromptError(f"messages of a chat must be a list, not {type(self.messages).__name__}")
        object.__setattr__(self, "messages", tuple(_message(each) for each in self.messages))
        if not self.messages or self.messages[-1].role != "user":
            last = f"the {self.messages[-1].role}'s" if self.messages else "missing"
            raise PromptError(f"the last message of a chat is {last}; end it with the user's, for the model to answer")

    @property
    def question(self) -> str:
        """What the user said last."""
        return self.messages[-1].content

    @property
    def length(self) -> int:
        """Characters of all messages."""
        return sum(len(each.content) for each in self.messages)

    def described(self) -> list[dict[str, str]]:
        """The messages as JSON, which is also how templates read them; `Chat` takes them back."""
        return [{"role": each.role, "content": each.content} for each in self.messages]


def chat(user: str, *, system: str | None = None, history: Sequence[tuple[str, str] | Mapping[str, str]] = ()) -> Chat:
    """A chat in which the user says `user` last.

    Args:
        user: the user's message, which the model is to answer.
        system: instructions in front; None for those that the model's own template puts there, if any.
        history: what was said before: pairs (user, assistant), or mappings {"role": …, "content": …}.

    Raises:
        PromptError: a message is empty, is not text, or has an unknown role.
    """
    before: list[Any] = [] if system is None else [Message("system", system)]
    for each in history:
        if isinstance(each, Mapping | Message):
            before.append(each)
        elif isinstance(each, str) or not isinstance(each, Sequence) or len(each) != 2:
            raise PromptError(
                f"history holds {each!r}; give pairs (user, assistant), or mappings with role and content"
            )
        else:
            before += [Message("user", each[0]), Message("assistant", each[1])]
    return Chat((*before, Message("user", user)))


def _name(ids: Sequence[int]) -> bytes:
    """What stands for the tokens of a chat."""
    return blake2b(np.asarray(ids, dtype=np.int64).tobytes(), digest_size=16).digest()


def _message(value: Any) -> Message:
    if isinstance(value, Message):
        return value
    if not isinstance(value, Mapping) or set(value) != {"role", "content"}:
        raise PromptError(f"{value!r} is no message of a chat; give a role and a content")
    return Message(value["role"], value["content"])


# --- Models that read chats -----------------------------------------------------------------------------------


@runtime_checkable
class ChatLM(Protocol):
    """A base model that also reads chats."""

    def encode_chat(self, chat: Chat) -> Tensor:
        """Token ids [P] of the chat, up to where the answer begins."""

    def chat_of(self, prompt: Tensor) -> Chat | None:
        """The chat that `encode_chat` made these tokens [P] of, None if it made none."""


class ChatReader:
    """Turns chats into tokens by a tokenizer's own template, and knows afterwards which tokens were which chat.

    Of the chats, those that were read or asked about last, up to `REMEMBERED` characters: a server reads without end.

    Args:
        tokenizer: of the model.
        name: how error messages call the model.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.tokenizer, self.name = tokenizer, name
        self._read: OrderedDict[bytes, tuple[Chat, int]] = OrderedDict()
        self._size = 0

    def encode(self, chat: Chat) -> Tensor:
        """Token ids [P] of a chat, up to where the answer begins.

        Raises:
            ModelError: the tokenizer has no template.
            PromptError: the template refuses the chat.
        """
        if not self._has_template:
            raise ModelError(
                f"model {self.name!r} has no chat template: give a plain prompt, or set chat_template of its tokenizer"
            )
        ids = render(self.tokenizer, chat.described(), answering=True)["input_ids"]
        self._remember(_name(ids), chat)
        return torch.tensor(ids, dtype=torch.long)

    def _remember(self, name: bytes, chat: Chat) -> None:
        # Several threads may be here: each step stands for itself. An entry is made anew, so that a chat that comes
        # again, be it the very same object, counts once.
        entry = (chat, chat.length)
        if self._read.setdefault(name, entry) is entry:
            self._size += chat.length
        while self._size > REMEMBERED and len(self._read) > 1:
            _, (_, length) = self._read.popitem(last=False)
            self._size -= length

    def of(self, prompt: Tensor) -> Chat | None:
        """The chat that these tokens [P] were made of; None for a plain prompt.

        Raises:
            PromptError: they end as a chat does that waits for an answer, and no such chat was read here.
        """
        ids = tuple(prompt.tolist())
        name = _name(ids)
        found, _ = self._read.get(name, (None, 0))
        if found is not None:
            with suppress(KeyError):
                self._read.move_to_end(name)
        # Taken for a plain prompt it would be scored with what the user said: another number, and nobody would know.
        if found is None and self._answer and ids[-len(self._answer) :] == self._answer:
            raise PromptError(
                "a prompt ends where a chat's answer begins, and this model has not read it as a chat: give it as "
                "twistlm.chat(…), take the sampler from the target that has it (Target.sampler), or say what is scored "
                "(of='continuation' or 'text')"
            )
        return found

    @property
    def _has_template(self) -> bool:
        return bool(getattr(self.tokenizer, "chat_template", None))

    @cached_property
    def _answer(self) -> tuple[int, ...]:
        """What the template writes where an answer begins; nothing without a template, or if it writes nothing."""
        if not self._has_template:
            return ()
        said = [{"role": "user", "content": "a"}]
        waiting, said_only = (render(self.tokenizer, said, answering=each)["input_ids"] for each in (True, False))
        return tuple(waiting[len(said_only) :]) if waiting[: len(said_only)] == said_only else ()


def encode_chat(lm: BaseLM, chat: Chat) -> Tensor:
    """Token ids [P] of the chat by the model's own template, up to where the answer begins.

    Raises:
        ModelError: the model reads no chats.
        PromptError: its template refuses this one.
    """
    if not isinstance(lm, ChatLM):
        raise ModelError(f"{getattr(lm, 'name', type(lm).__name__)} reads no chats; give a plain prompt")
    return lm.encode_chat(chat)


def chat_of(lm: BaseLM, prompt: Tensor) -> Chat | None:
    """The chat that the model made these tokens [P] of; None for a plain prompt."""
    return lm.chat_of(prompt) if isinstance(lm, ChatLM) else None


def render(tokenizer: Any, messages: list[dict[str, str]], *, answering: bool) -> dict[str, list[int]]:
    """Token ids (and masks) of messages by a tokenizer's own template; `answering` adds what an answer begins with.

    Raises:
        PromptError: the template refuses the messages (the order of roles, say).
    """
    from jinja2 import TemplateError

    try:
        # The template writes the special tokens itself, and the tokenizer is kept from adding them once more.
        encoded = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=answering,
            tokenize=True,
            return_dict=True,
            tokenizer_kwargs={"verbose": False},
        )
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise PromptError(f"the chat template refuses these messages ({reason}); change roles or order") from error
    return {name: list(values) for name, values in encoded.items()}
