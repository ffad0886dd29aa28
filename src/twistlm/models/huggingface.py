"""Any causal language model of transformers: what is known is decoded fast, all else by its own forward pass.

Which of the two is right is not believed but compared, when a model is loaded, with the model as a whole.
"""

import weakref
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from twistlm.core.errors import ModelError
from twistlm.core.registry import available
from twistlm.models.agreement import WAYS, way_of
from twistlm.models.base import DecoderState, Prompts
from twistlm.models.chats import Chat, ChatReader
from twistlm.models.fast import FastDecoder
from twistlm.models.generic import GenericDecoder
from twistlm.models.local import safely, usable_device
from twistlm.models.packaged import without_progress_bars
from twistlm.models.packing import sharing_copy
from twistlm.models.tail import logits_of, network_of

DTYPES: dict[str, Any] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def _longest(config: Any) -> int | None:
    """Tokens that a text may have at most; None if the configuration does not say.

    Of `longrope` (Phi-3 128k) the length up to which positions have the short factors. Past it all positions have
    others, those of the text before as well, so that p₀ of a prefix would depend on what follows.
    """
    longest: int | None = getattr(config, "max_position_embeddings", None)
    positions = getattr(config, "rope_parameters", None) or {}
    if positions.get("rope_type") == "longrope":
        longest = positions.get("original_max_position_embeddings") or config.original_max_position_embeddings
    # XLNet says −1 for any length.
    return longest if longest is not None and longest > 0 else None


def _ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a text: the tokenizer's, and all of a list in the generation config (`<|im_end|>` besides)."""
    first = tokenizer.eos_token_id if tokenizer is not None else model.config.eos_token_id
    more = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [*(first if isinstance(first, list) else [first]), *(more if isinstance(more, list) else [])]
    return tuple(dict.fromkeys(end for end in found if end is not None))


class _HandedOver:
    """Parameters as they were: where each is, its version, and one number of it (`.data` has no version).

    Of those that nobody else holds any more nothing is asked.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [weakref.ref(parameter) for parameter in model.parameters()]
        self._before = [self._state(reference) for reference in self._parameters]

    def changed(self) -> bool:
        """Whether one of them was written to, or moved."""
        now = map(self._state, self._parameters)
        return any(state is not None and state != before for state, before in zip(now, self._before, strict=True))

    @staticmethod
    def _state(reference: "weakref.ref[nn.Parameter]") -> tuple[Any, ...] | None:
        if (found := reference()) is None:
            return None
        parameter = found.detach()
        return parameter.data_ptr(), found._version, parameter[(0,) * parameter.dim()].item()


class HuggingFaceLM:
    """A causal LM with its tokenizer, as the base model p₀. Its weights are frozen.

    Of the model itself only what p₀ needs is kept, and on the CPU its matrices mostly in another form: drop it if
    memory counts.

    Args:
        model: an `AutoModelForCausalLM`.
        tokenizer: its tokenizer.
        name: how error messages call it.
        untouched: it is as it was loaded, so that what was found of it before (`agreement`) still holds.

    Attributes:
        way: how it is decoded: "fast" or "generic".

    Raises:
        ModelError: token by token, the model gives other logits than as a whole: it looks ahead, or what it keeps of a
            prefix cannot be handed on.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = "model", *, untouched: bool = False) -> None:
        model.requires_grad_(False)
        self.tokenizer, self.name = tokenizer, name
        self.output = model.get_output_embeddings()
        if getattr(self.output, "weight", None) is None:
            raise ModelError(f"{name!r} ({type(model).__name__}) has no output layer to read logits from")
        self.vocab_size: int = self.output.weight.shape[0]
        self.feature_size: int = self.output.weight.shape[1]
        self.num_parameters: int = model.num_parameters()
        self.eos_token_ids = _ends(model, tokenizer)
        self.eos_token_id = self.eos_token_ids[0] if self.eos_token_ids else None
        self.max_length = _longest(model.config)
        self._given = _HandedOver(model)
        way = way_of(model, name, self.max_length, remember=untouched)
        self._logits = logits_of(model)
        self._decoder: FastDecoder | GenericDecoder = WAYS[way](network_of(model))
        self.way, self._chats = way, ChatReader(tokenizer, name)

    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        """As for `Decoder`.

        Raises:
            ModelError: the model was changed after it was handed over.
        """
        self._check_unchanged()
        return self._decoder.start(prompts, capacity)

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        """As for `Decoder`."""
        return self._decoder.advance(state, parents, tokens)

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """As for `Decoder`: hidden states [B, T, d].

        Raises:
            ModelError: the model was changed after it was handed over.
        """
        self._check_unchanged()
        return self._decoder.features(prompts, tokens)

    @property
    def module(self) -> nn.Module:
        """The network that runs."""
        return self._decoder.module

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self._decoder.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return self._decoder.dtype

    @property
    def serves_threads(self) -> bool:
        """Whether several threads may read by it at once, and gain by it."""
        return self._decoder.serves_threads

    def identified_by(self) -> Any:
        """What makes it this very model: weights, tokenizer, precision. See `twistlm.core.identity`."""
        self._check_unchanged()
        more = self.eos_token_ids[1:]
        # A sharing copy has ordinary layers for packed ones.
        return [sharing_copy(self.module), self.output.weight, self.output.bias, self.tokenizer, str(self.dtype), *more]

    @property
    def unembedding(self) -> Tensor:
        """The output layer's weight [V, d]."""
        weight: Tensor = self.output.weight
        return weight

    def logits(self, features: Tensor) -> Tensor:
        """The output layer, and soft caps or scales behind it: [..., V]."""
        return self._logits(features)

    def encode(self, text: str) -> Tensor:
        """Token ids [P], with the special tokens that the tokenizer itself puts in front, without those behind."""
        # Not verbose: what is too long is refused in a line of our own.
        ids = self.tokenizer(text, verbose=False)["input_ids"]
        return torch.tensor(ids[: len(ids) - self._behind], dtype=torch.long)

    @cached_property
    def _behind(self) -> int:
        """How many special tokens the tokenizer puts behind every text (EOS), which is to go on here."""
        whole, bare = (self.tokenizer("0", add_special_tokens=given)["input_ids"] for given in (True, False))
        front = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), len(whole) - len(bare))
        return len(whole) - front - len(bare)

    def encode_chat(self, chat: Chat) -> Tensor:
        """Token ids [P] of a chat by the tokenizer's own template, up to where the answer begins.

        Raises:
            ModelError: the tokenizer has no template.
            PromptError: the template refuses the chat.
        """
        return self._chats.encode(chat)

    def chat_of(self, prompt: Tensor) -> Chat | None:
        """The chat that `encode_chat` made these tokens [P] of; None for a plain prompt.

        Raises:
            PromptError: they end as a chat does that waits for an answer, and this model has read no such chat.
        """
        return self._chats.of(prompt)

    def decode(self, sequences: Sequence[Tensor]) -> list[str]:
        """Texts, special tokens skipped."""
        texts: list[str] = self.tokenizer.batch_decode(
            [sequence.tolist() for sequence in sequences], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return texts

    def trainable_copy(self) -> FastDecoder | GenericDecoder:
        """An independent copy of the network in float32 whose parameters train: the start of a separate twist."""
        self._check_unchanged()
        return self._decoder.trainable_copy()

    def adapted_copy(
        self, adapt: Callable[[nn.Module], None], merge: Callable[[nn.Module], None]
    ) -> FastDecoder | GenericDecoder:
        """The network on the very same frozen weights, with what `adapt` adds to train: the start of a light twist.

        `merge` takes out again what `adapt` put into a network: see `FastDecoder`.
        """
        self._check_unchanged()
        return self._decoder.adapted_copy(adapt, merge)

    def _check_unchanged(self) -> None:
        # Packed matrices are copies, everything else is shared: what runs would be neither the old nor the new model.
        if self._given.changed():
            raise ModelError(f"{self.name!r} was changed after it was handed over; hand it over again")


def load(model: str, *, dtype: str = "auto", device: str = "cpu") -> HuggingFaceLM:
    """A causal LM by registered name (see `twistlm list`), folder, or hub name.

    Args:
        model: what to load.
        dtype: "auto" (as stored), "float32", "bfloat16" or "float16".
        device: a torch device.

    Raises:
        ConfigError: there is no such device.
        ModelError: nothing of that name is here, and it cannot be had from the hub.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    to, names = usable_device(device), available("model")
    source: str | Path = names[model].value() if model in names else model
    try:
        with without_progress_bars():
            place, how = safely(source)
            loaded = AutoModelForCausalLM.from_pretrained(place, dtype=DTYPES[dtype], **how)
            tokenizer = AutoTokenizer.from_pretrained(place, **how)
    except (OSError, ValueError, UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"cannot load model {model!r}: {reason}; give a folder, a hub name (needs network), or one of the packaged "
            f"models: {', '.join(names)}"
        ) from error
    return HuggingFaceLM(loaded.to(to), tokenizer, model, untouched=True)
