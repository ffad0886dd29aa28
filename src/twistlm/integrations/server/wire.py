"""What stands in requests and answers: OpenAI's fields, and ours beside them."""

import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from annotated_types import Interval, MinLen
from pydantic import BaseModel, ConfigDict, ValidationError

from twistlm.integrations.answers import Answer, changed
from twistlm.integrations.server.limits import Limits
from twistlm.models.chats import Chat

# Fields that would change what is sampled or returned, OpenAI's and those of servers like it, with the values that
# change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "temperature": (1,), "top_p": (1,), "presence_penalty": (0,), "frequency_penalty": (0,), "best_of": (1,),
    "echo": (False,), "stream": (False,), "logprobs": (False, 0), "top_logprobs": (0,), "stop": ([],), "suffix": ("",),
    "logit_bias": ({},), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none", "auto"), "response_format": ({"type": "text"},), "modalities": (["text"],),
    "top_k": (0, -1), "min_p": (0,), "repetition_penalty": (1,), "min_tokens": (0,), "stop_token_ids": ([],),
}  # fmt: skip
# Of bookkeeping, and about tools and streams, of which there are none.
HARMLESS = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "stream_options", "parallel_tool_calls",
)  # fmt: skip


class RefusedError(Exception):
    """A request that is not answered: HTTP status, message, and the field that it is about."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": None}}


class Asked(BaseModel):
    """A request, for texts or for answers to a chat.

    Attributes:
        model: the run's name.
        prompt: a text, or several.
        messages: a chat.
        n: sequences after each prompt.
        max_tokens, max_completion_tokens: the run's number of tokens, or nothing.
        seed: of the answer.
        num_particles: N of the run of SMC of each sequence (ours; `extra_body` of OpenAI's client).
    """

    model_config = ConfigDict(extra="allow")

    model: str
    prompt: str | Annotated[list[str], MinLen(1)] | None = None
    messages: list[dict[str, str]] | None = None
    n: Annotated[int, Interval(ge=1)] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    seed: Annotated[int, Interval(ge=-(2**63), lt=2**63)] | None = None
    num_particles: Annotated[int, Interval(ge=1)] | None = None

    @staticmethod
    def read(body: bytes, *, name: str, num_tokens: int, limits: Limits) -> "Asked":
        """What a body asks for.

        Args:
            body: JSON.
            name: of the run.
            num_tokens: of its texts.
            limits: what may be asked for.

        Raises:
            RefusedError: it is no such request, or asks for what is not to be had.
        """
        try:
            asked = Asked.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"][:1])
            raise RefusedError(400, f"{field or 'the body'}: {first['msg']}", field or None) from None
        if asked.model != name:
            raise RefusedError(404, f"there is no model {asked.model!r} here; this is {name!r}", "model")
        given = {name: getattr(asked, name) for name in ("max_tokens", "max_completion_tokens")}
        fields = {**given, **(asked.model_extra or {})}
        if (refused := changed(fields, NEUTRAL, num_tokens, HARMLESS)) is not None:
            raise RefusedError(400, refused[1], refused[0])
        if (asked.num_particles or 1) > limits.most_particles:
            raise RefusedError(400, f"num_particles is at most {limits.most_particles} here", "num_particles")
        if asked.each * max(1, len(asked.texts)) > limits.most_samples:
            raise RefusedError(400, f"at most {limits.most_samples} sequences a request; ask more often", "n")
        count, num_particles = asked.each * max(1, len(asked.texts)), asked.num_particles or limits.num_particles
        if (drawn := count * num_particles * num_tokens) > limits.most_drawn:
            said = f"{count} sequences × {num_particles} particles × {num_tokens} tokens are {drawn:,}"
            raise RefusedError(400, f"{said}, and a request has at most {limits.most_drawn:,} here; ask for less", "n")
        return asked

    @property
    def each(self) -> int:
        """Sequences after each prompt."""
        return self.n or 1

    @property
    def texts(self) -> list[str]:
        """The plain prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt or []

    def entry(self, *, chats: bool) -> str | Chat:
        """The prompt of a request for an answer to a chat.

        Args:
            chats: whether the run's own prompts are chats. Where they are not, a single message of the user is a plain
                prompt: tools that send chats alone can ask a model without a chat template.

        Raises:
            RefusedError: there is none.
            PromptError: it is no chat.
        """
        if not self.messages:
            raise RefusedError(400, "messages is missing", "messages")
        only = self.messages[0]
        if not chats and len(self.messages) == 1 and only.get("role") == "user" and "content" in only:
            return only["content"]
        messages: Any = tuple(self.messages)
        return Chat(messages)


def answer(
    answers: Sequence[Answer], *, chat: bool, name: str, num_prompt_tokens: int, num_particles: int
) -> dict[str, Any]:
    """The body of an answer. What is ours stands under `twistlm`, in each choice and in the whole."""
    made = sum(each.num_tokens for each in answers)
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": name,
        "choices": [
            {
                "index": number,
                "finish_reason": "stop" if each.finished else "length",
                "logprobs": None,
                **({"message": {"role": "assistant", "content": each.text}} if chat else {"text": each.text}),
                "twistlm": each.known,
            }
            for number, each in enumerate(answers)
        ],
        "usage": {
            "prompt_tokens": num_prompt_tokens,
            "completion_tokens": made,
            "total_tokens": num_prompt_tokens + made,
        },
        "twistlm": {"num_particles": num_particles},
    }
