"""Any causal language model of transformers, decoded incrementally with a key–value cache.

Passes without gradient run through a copy of the network that is arranged for them (`inference`), over a cache that is
made for prefixes (`cache`).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache

from twistlm.core.errors import ModelError
from twistlm.core.kernels.linear import PackedProduct
from twistlm.core.kernels.threads import alone
from twistlm.core.registry import available
from twistlm.models.attention import attending, by_column, can_attend
from twistlm.models.base import DecoderState, Prompts
from twistlm.models.cache import GrowingLayer, PrefixLayer
from twistlm.models.chats import Chat, ChatReader
from twistlm.models.groups import Groups
from twistlm.models.local import safely, usable_device
from twistlm.models.packaged import without_progress_bars
from twistlm.models.packing import for_inference, in_float32, sharing_copy
from twistlm.models.prefixes import PrefixCache
from twistlm.models.reading import (
    Memory,
    Tokens,
    distinct,
    features_after,
    hidden_after,
    hidden_states,
    in_parts,
    left_padded,
    read,
    small,
    worth_reading_once,
)
from twistlm.models.tail import Tail, changes_logits

DTYPES: dict[str, Any] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


# Tokens whose activations a trainable network holds at a time: at most, and at least, and bytes of them, at so many for
# each number of a hidden state (200 kB in a layer of GPT-2's width).
TRAINING_TOKENS, FEWEST_TRAINING_TOKENS, ACTIVATIONS, BYTES_EACH = 1024, 256, 600_000_000, 270
# Columns of prompts that take the memory of one such token, if several prompts are read before their sequences.
COLUMNS_PER_TOKEN = 32
# Tokens of sequences, with their prompts', that run in one pass without gradient.
PASS_TOKENS = 16_384


class HuggingFaceDecoder:
    """A transformer without its output layer, reading tokens for `TwistedLM`.

    Args:
        module: the `base_model` of a causal LM.
        trainable: keep gradients through `features` (a twist with its own network).
        dtype: precision of passes without gradient; by default the module's own.
        merge: makes plain layers of those that `module` has in their place, in a network that shares its tensors:
            it may replace layers and must change no tensor. Passes without gradient then run that network.
    """

    def __init__(
        self,
        module: nn.Module,
        trainable: bool = False,
        dtype: torch.dtype | None = None,
        merge: Callable[[nn.Module], None] | None = None,
    ) -> None:
        # A frozen network is only ever run, so nothing but its inference form is held on to.
        self.module = module.eval() if trainable else for_inference(module, next(module.parameters()).dtype)
        self.trainable, self._dtype, self._merge = trainable, dtype, merge
        self._inference: tuple[object, nn.Module] | None = None
        self._memory = Memory()

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.module.parameters()).device

    @property
    def serves_threads(self) -> bool:
        """Whether several threads may read by it at once, and gain by it."""
        return self.device.type == "cpu" and not self.trainable

    @property
    def dtype(self) -> torch.dtype:
        """Precision of passes without gradient."""
        return self._dtype or next(self.module.parameters()).dtype

    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        """Read U prompts; hidden states [U, d] of their last tokens.

        Where the cache attends, what all prompts begin with is read and kept once, and nothing of a prompt is copied
        for the prefixes that go on from it. Elsewhere they are read in one padded batch.
        """
        prompts_once = distinct(prompts)
        attends = self.device.type == "cpu" and can_attend(self.module)
        if attends and len(prompts) == 1:
            return self._start_alone(prompts_once, capacity)
        if attends and len(prompts_once) > 1 and not by_column(self.module):
            return self._start_apart(prompts, prompts_once, capacity)
        tokens, padding = left_padded(prompts, self.device)
        padded = bool(padding.any())
        attends = attends and not padded
        layers = Cache(layer_class_to_replicate=partial(PrefixLayer if attends else GrowingLayer, *capacity))
        cache = PrefixCache(layers, padding, padded, attends)
        return DecoderState(self._step(tokens, cache), cache)

    def _start_alone(self, prompt: Sequence[Tokens], capacity: tuple[int, int]) -> DecoderState:
        """Read one prompt. Nothing ever changes what is kept of it, so the same one again costs nothing."""
        reading = self._memory.read(self._network(), prompt, self.device)
        layers = Cache([PrefixLayer(*capacity, prompt=pair) for pair in reading.stem_alone()])
        nodes = torch.zeros(1, 0, dtype=torch.int32)
        padding = torch.zeros(1, dtype=torch.long)
        return DecoderState(reading.hidden, PrefixCache(layers, padding, False, True, nodes))

    def _start_apart(self, prompts: Prompts, prompts_once: Sequence[Tokens], capacity: tuple[int, int]) -> DecoderState:
        """Read several prompts, each once."""
        reading = self._memory.read(self._network(), prompts_once, self.device)
        owner = reading.owners(prompts)
        groups = Groups.of([rests.lengths for rests in reading.rests], owner)
        stem, layers = reading.stem_alone(), []
        for at in range(len(reading.rests[0].layers)):
            layer = PrefixLayer(*capacity, prompt=stem[at] if stem else None)
            layer.part([rests.layers[at] for rests in reading.rests], groups)
            layers.append(layer)
        cache = PrefixCache(Cache(layers), groups.padding, False, True, groups=groups)
        return DecoderState(reading.hidden[owner], cache)

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        """Append one token to each of the prefixes `parents`; the cache of `state` is moved, not copied."""
        cache: PrefixCache = state.cache
        cache = cache.after(parents)
        hidden = self._step(tokens.unsqueeze(-1), cache)
        return DecoderState(hidden, cache.coalesced())

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Hidden states [B, T, d] before each of tokens [B, T].

        Sequences run as many at a time as memory has room for. Prompts that several sequences share are read once.
        """
        training = self.trainable and torch.is_grad_enabled()
        if training:
            # An update follows, after which it is made anew: activations take its room.
            self._forget()
        network, once = self.module if training else self._network(), distinct(prompts)
        tokens, longest = tokens.to(self.device), max(len(prompt) for prompt in once)
        most, at_once = PASS_TOKENS // (longest + tokens.shape[1]), _trained_at_once(self.module)
        with torch.set_grad_enabled(training):
            if len(once) == 1 and len(prompts) > 1 and longest > 1:
                # The last token of the prompt is each sequence's own: their hidden states come from one pass.
                reading = read(network, [once[0][:-1]], self.device, at_once)
                last = torch.full_like(tokens[:, :1], once[0][-1])
                inputs = torch.cat([last, tokens[:, :-1]], -1)
                rows = at_once // inputs.shape[1] if training else most
                return in_parts(partial(hidden_after, network, reading), (inputs,), max(1, rows), training)
            if len(once) > 1 and worth_reading_once(once, len(prompts)):
                if training:
                    reading = read(network, once, self.device, at_once)
                    most = at_once // (tokens.shape[1] + longest // COLUMNS_PER_TOKEN)
                else:
                    reading = self._memory.read(network, once, self.device)
                return features_after(network, reading, reading.owners(prompts), tokens, max(1, most))
            prefix, padding = left_padded(prompts, self.device)
            inputs = torch.cat([prefix, tokens[:, :-1]], -1)
            rows = at_once // inputs.shape[1] if training else most
            given = inputs, padding if bool(padding.any()) else None
            return in_parts(partial(hidden_states, network), given, max(1, rows), training)[:, longest - 1 :]

    @torch.no_grad()
    def _step(self, tokens: Tensor, cache: PrefixCache) -> Tensor:
        """Hidden states [U, d] of the last of tokens [U, Q], which are appended to the cache."""
        network = self._network()
        used = cache.layers.get_seq_length()
        padding = cache.padding if cache.padded or cache.groups is not None else None
        with attending(network, cache.layers) if cache.attends else nullcontext(), alone(small(network, tokens)):
            return hidden_states(network, tokens, padding, used, cache.layers, cache.padded)[:, -1]

    def _network(self) -> nn.Module:
        """The network for passes without gradient; for a trainable one made anew after its parameters have changed."""
        if not self.trainable:
            return self.module
        parameters = list(self.module.parameters())
        version = (parameters[0].data_ptr(), parameters[0].dtype, sum(p._version for p in parameters))
        if self._inference is None or self._inference[0] != version:
            # The last one goes before there is another.
            network = self.module
            self._forget()
            if self._merge is not None:
                self._merge(network := sharing_copy(network))
            self._inference = (version, for_inference(network, self.dtype, stays=self._merge is None))
        return self._inference[1]

    def _forget(self) -> None:
        """Drop the network for passes without gradient, and what it has read."""
        self._inference = None
        self._memory.forget()


def _trained_at_once(network: nn.Module) -> int:
    """Tokens whose activations fit beside everything else that training holds."""
    config: Any = network.config
    each: int = BYTES_EACH * config.hidden_size * config.num_hidden_layers
    return min(TRAINING_TOKENS, max(FEWEST_TRAINING_TOKENS, ACTIVATIONS // each))


def _longest(config: Any) -> int | None:
    """Tokens that a text may have at most; None if the configuration does not say.

    Of `longrope` (Phi-3 128k) the length up to which positions have the short factors. Past it all positions have
    others, those of the text before as well, so that p₀ of a prefix would depend on what follows.
    """
    longest: int | None = getattr(config, "max_position_embeddings", None)
    positions = getattr(config, "rope_parameters", None) or {}
    if positions.get("rope_type") == "longrope":
        longest = positions.get("original_max_position_embeddings") or config.original_max_position_embeddings
    return longest


class HuggingFaceLM(HuggingFaceDecoder):
    """A causal LM with its tokenizer, as the base model p₀. Its weights are frozen.

    Of the model itself only what p₀ needs is kept, and on the CPU its matrices in another form: drop it if memory
    counts.

    Args:
        model: an `AutoModelForCausalLM`.
        tokenizer: its tokenizer.
        name: how error messages call it.

    Raises:
        ModelError: read in parts the model gives other logits than as a whole: it keeps something else than keys and
            values, or does more than its network and the head behind it.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str = "model") -> None:
        super().__init__(model.base_model)
        model.requires_grad_(False)
        self.tokenizer, self.name = tokenizer, name
        self.output = model.get_output_embeddings()
        self.vocab_size: int = self.output.weight.shape[0]
        self.feature_size: int = self.output.weight.shape[1]
        eos = tokenizer.eos_token_id if tokenizer is not None else model.config.eos_token_id
        self.eos_token_id: int | None = eos[0] if isinstance(eos, list) else eos
        self.max_length = _longest(model.config)
        # Nearly always the output layer is all that follows the network.
        self._logits: Callable[[Tensor], Tensor] = PackedProduct(self.output.weight, self.output.bias)
        if self._changes_logits(model):
            self._logits = Tail(model)
        self._chats = ChatReader(tokenizer, name)
        self._check_architecture(model)

    def identified_by(self) -> Any:
        """What makes it this very model: weights, tokenizer, precision. See `twistlm.core.identity`."""
        # A sharing copy has ordinary layers for packed ones.
        return [sharing_copy(self.module), self.output.weight, self.output.bias, self.tokenizer, str(self.dtype)]

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

    def trainable_copy(self) -> HuggingFaceDecoder:
        """An independent copy of the network in float32 whose parameters train: the start of a separate twist.

        It samples in this model's precision: the weights account for the very values that were drawn from.
        """
        return HuggingFaceDecoder(in_float32(self.module).requires_grad_(), trainable=True, dtype=self.dtype)

    def adapted_copy(
        self, adapt: Callable[[nn.Module], None], merge: Callable[[nn.Module], None]
    ) -> HuggingFaceDecoder:
        """The network on the very same frozen weights, with what `adapt` adds to train: the start of a light twist.

        Only matrices that are packed here (those of linear layers on the CPU) are copied, in this model's precision.
        `merge` takes out again what `adapt` put into a network: see `HuggingFaceDecoder`.
        """
        adapt(network := sharing_copy(self.module))
        return HuggingFaceDecoder(network, trainable=True, dtype=self.dtype, merge=merge)

    @torch.no_grad()
    def _changes_logits(self, model: Any) -> bool:
        """Whether soft caps or scales follow the output layer; of large hidden states, where a cap is felt."""
        generator = torch.Generator().manual_seed(0)
        features = (
            torch.randn(4, self.feature_size, generator=generator).mul(8).to(self.device, self.output.weight.dtype)
        )
        return changes_logits(model, features, self._logits(features))

    @torch.no_grad()
    def _check_architecture(self, model: Any) -> None:
        """The split into network and output layer, and a step with the cache, must give what the whole model gives."""
        # Ordinary words from all over the vocabulary: special tokens in a row drive half precision astray.
        tokens = torch.linspace(0.1, 0.9, 4, device=self.device).mul(self.vocab_size - 1).long().unsqueeze(0)
        whole = model(input_ids=tokens, use_cache=False).logits[0, -1].float()
        try:
            read_at_once = self.features([tokens[0, :1]], torch.nn.functional.pad(tokens[:, 1:], (0, 1)))[:, -1]
            state = self.start([tokens[0, :3]])
            state = self.advance(state, torch.zeros(1, dtype=torch.long, device=self.device), tokens[0, 3:])
            split, stepped = (self.logits(x)[0].float() for x in (read_at_once, state.features))
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            raise ModelError(f"{self.name!r} cannot be decoded with a key–value cache ({error})") from error
        # The same pass agrees to the last bits; in half precision a step with the cache rounds differently in every
        # layer, and on some processors more than on others (7 % of the largest logit was seen).
        size = whole.abs().max().clamp_min(1.0)
        loose = 0.05 if self.dtype == torch.float32 else 0.25
        if (whole - split).abs().max() > 0.05 * size or (whole - stepped).abs().max() > loose * size:
            raise ModelError(
                f"{self.name!r} ({type(model).__name__}) gives other logits in parts than as a whole: it keeps more "
                "than keys and values, or does more than its network and output layer; it is not supported"
            )


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
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"cannot load model {model!r}: {reason}; give a folder, a hub name (needs network), or one of the packaged "
            f"models: {', '.join(names)}"
        ) from error
    return HuggingFaceLM(loaded.to(to), tokenizer, model)
