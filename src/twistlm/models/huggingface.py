"""Any causal language model of transformers, decoded incrementally with a key–value cache.

Passes without gradient run through a copy of the network that is arranged for them (`inference`), over a cache that is
made for prefixes (`cache`).
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache, DynamicCache

from twistlm.core.errors import ModelError
from twistlm.core.kernels.linear import PackedProduct
from twistlm.core.kernels.threads import alone
from twistlm.core.registry import available
from twistlm.models.attention import attending, can_attend
from twistlm.models.base import DecoderState, Prompts
from twistlm.models.cache import GrowingLayer, PrefixLayer
from twistlm.models.chats import Chat, render
from twistlm.models.local import safely, usable_device
from twistlm.models.packaged import without_progress_bars
from twistlm.models.packing import for_inference, sharing_copy

DTYPES: dict[str, Any] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


# Tokens whose activations a trainable network holds at a time: about 200 kB each in a layer of GPT-2's width.
TRAINING_TOKENS = 1024
# Numbers in a step's hidden states below which all but its products is faster on one thread.
ALONE = 2**18
# Columns between looks for what all prefixes share, and the fewest worth moving.
SHARE_EVERY = 32

Pair = tuple[Tensor, Tensor]
"""Keys and values of one layer."""


@dataclass(frozen=True)
class PrefixCache:
    """Key–value cache of U prefixes, right-aligned: `padding` [U] columns on the left mean nothing.

    `attends`: its layers are `PrefixLayer`s. `nodes` [U, L]: which row of its time each prefix descends from, at every
    column after the prompt, so that columns can be told in which all prefixes agree; None if there was not one prompt.
    """

    layers: Cache
    padding: Tensor
    padded: bool
    attends: bool
    nodes: Tensor | None = None


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
        self._last_prompt: tuple[nn.Module, list[int], Tensor, list[Pair]] | None = None

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of passes without gradient."""
        return self._dtype or next(self.module.parameters()).dtype

    def start(self, prompts: Prompts, capacity: tuple[int, int] = (0, 0)) -> DecoderState:
        """Read U prompts in one padded batch; hidden states [U, d] of their last tokens."""
        tokens, padding = _left_padded(prompts, self.device)
        padded = bool(padding.any())
        attends = self.device.type == "cpu" and not padded and can_attend(self.module)
        if attends and len(prompts) == 1:
            return self._start_alone(tokens, padding, capacity)
        layers = Cache(layer_class_to_replicate=partial(PrefixLayer if attends else GrowingLayer, *capacity))
        cache = PrefixCache(layers, padding, padded, attends)
        return DecoderState(self._step(tokens, cache), cache)

    def _start_alone(self, tokens: Tensor, padding: Tensor, capacity: tuple[int, int]) -> DecoderState:
        """Read one prompt [1, P]. Nothing ever changes what is kept of it, so the same one again costs nothing."""
        network, known = self._network(), self._last_prompt
        if known is None or known[0] is not network or known[1] != tokens[0].tolist():
            layers = Cache(layer_class_to_replicate=PrefixLayer)
            hidden = self._step(tokens, PrefixCache(layers, padding, False, True))
            known = (network, tokens[0].tolist(), hidden, [layer.prompt for layer in layers.layers])
            self._last_prompt = known
        layers = Cache([PrefixLayer(*capacity, prompt=pair) for pair in known[3]])
        nodes = torch.zeros(1, 0, dtype=torch.int32)
        return DecoderState(known[2], PrefixCache(layers, padding, False, True, nodes))

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        """Append one token to each of the prefixes `parents`; the cache of `state` is moved, not copied."""
        cache: PrefixCache = state.cache
        if parents.shape != cache.padding.shape or not torch.equal(
            parents, torch.arange(len(cache.padding), device=parents.device)
        ):
            for layer in cache.layers.layers:
                layer.reorder_cache(parents)
            nodes = None if cache.nodes is None else cache.nodes[parents]
            cache = replace(cache, padding=cache.padding[parents], nodes=nodes)
        hidden = self._step(tokens.unsqueeze(-1), cache)
        return DecoderState(hidden, _coalesced(cache))

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Hidden states [B, T, d] before each of tokens [B, T], in one pass; a prompt that all share is read once."""
        prefix, padding = _left_padded(prompts, self.device)
        inputs = torch.cat([prefix, tokens[:, :-1].to(self.device)], -1)
        last, masked = prefix.shape[1] - 1, bool(padding.any())
        training = self.trainable and torch.is_grad_enabled()
        network = self.module if training else self._network()
        shared: list[Pair] = []
        with torch.set_grad_enabled(training):
            if len(prompts) > 1 and last > 0 and not masked and bool((prefix == prefix[0]).all()):
                shared = _keys_and_values(network, prefix[:1, :last])
                inputs, last = inputs[:, last:], 0
            read = partial(_hidden_after, network, shared)
            rows = max(1, TRAINING_TOKENS // inputs.shape[1]) if training else len(prompts)
            starts, parts = range(0, len(prompts), rows), []
            for at in starts:
                part = inputs[at : at + rows], padding[at : at + rows] if masked else None
                # Activations of a few sequences at a time: each part runs again in the backward pass, but for the
                # last one, which that pass begins with.
                again = training and at != starts[-1]
                parts.append(checkpoint(read, *part, use_reentrant=False) if again else read(*part))
        return torch.cat(parts)[:, last:]

    @torch.no_grad()
    def _step(self, tokens: Tensor, cache: PrefixCache) -> Tensor:
        """Hidden states [U, d] of the last of tokens [U, Q], which are appended to the cache."""
        network: Any = self._network()
        used = cache.layers.get_seq_length()
        small = tokens.numel() * network.config.hidden_size < ALONE
        with attending(network, cache.layers) if cache.attends else nullcontext(), alone(small):
            return _hidden(network, tokens, cache.padding if cache.padded else None, used, cache.layers)[:, -1]

    def _network(self) -> nn.Module:
        """The network for passes without gradient; for a trainable one made anew after its parameters have changed."""
        if not self.trainable:
            return self.module
        parameters = list(self.module.parameters())
        version = (parameters[0].data_ptr(), parameters[0].dtype, sum(p._version for p in parameters))
        if self._inference is None or self._inference[0] != version:
            network = self.module
            if self._merge is not None:
                self._merge(network := sharing_copy(network))
            self._inference = (version, for_inference(network, self.dtype))
        return self._inference[1]


def _coalesced(cache: PrefixCache) -> PrefixCache:
    """`cache` after a step: what all prefixes have come to share is kept once, like the prompt.

    Under resampling the ancestry of N particles is a tree of T + O(N log N) nodes (Jacob, Murray and Rubenthaler,
    2015): all but the last columns are the same in every row, and then need not be read, moved or kept N times.
    """
    if cache.nodes is None:
        return cache
    nodes = torch.cat([cache.nodes, torch.arange(len(cache.nodes), dtype=torch.int32).unsqueeze(-1)], -1)
    if nodes.shape[-1] % SHARE_EVERY == 0:
        # Lineages that have met stay together: where all agree, they agree in all columns before.
        count = int((nodes == nodes[:1]).all(0).sum())
        if count >= SHARE_EVERY:
            for layer in cache.layers.layers:
                layer.share(count)
            nodes = nodes[:, count:]
    return replace(cache, nodes=nodes)


def _hidden(
    network: nn.Module, tokens: Tensor, padding: Tensor | None, used: int = 0, layers: Cache | None = None
) -> Tensor:
    """Hidden states [B, Q, d] of tokens [B, Q] that follow `used` columns, of which `padding` [B] mean nothing."""
    columns = torch.arange(used + tokens.shape[1], device=tokens.device)
    mask = None
    positions = columns[used:].unsqueeze(0).expand(tokens.shape[0], -1)
    if padding is not None:
        mask = (columns >= padding.unsqueeze(-1)).long()
        positions = (positions - padding.unsqueeze(-1)).clamp_min(0)
    output = network(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=layers,
        use_cache=layers is not None,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def _keys_and_values(network: nn.Module, prompt: Tensor) -> list[Pair]:
    """Keys and values of each layer for a prompt [1, P], with gradient if there is one to be had."""
    cache = DynamicCache()
    _hidden(network, prompt, None, 0, cache)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _hidden_after(network: nn.Module, prompt: Sequence[Pair], tokens: Tensor, padding: Tensor | None) -> Tensor:
    """Hidden states [B, Q, d] of tokens [B, Q], all of them after the prompt [1, P] that `prompt` is of, if any."""
    if not prompt:
        return _hidden(network, tokens, padding)
    cache = DynamicCache()
    for at, pair in enumerate(prompt):
        cache.update(*[each.expand(len(tokens), -1, -1, -1) for each in pair], at)
    return _hidden(network, tokens, padding, cache.get_seq_length(), cache)


class HuggingFaceLM(HuggingFaceDecoder):
    """A causal LM with its tokenizer, as the base model p₀. Its weights are frozen.

    Of the model itself only what p₀ needs is kept, and on the CPU its matrices in another form: drop it if memory
    counts.

    Args:
        model: an `AutoModelForCausalLM`.
        tokenizer: its tokenizer.
        name: how error messages call it.

    Raises:
        ModelError: the architecture changes its logits after the output layer (soft caps, scales), which is not
            supported, or it keeps something else than keys and values.
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
        self.max_length: int | None = getattr(model.config, "max_position_embeddings", None)
        self._product = PackedProduct(self.output.weight, self.output.bias)
        self._chats: dict[tuple[int, ...], Chat] = {}
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
        """The output layer: [..., V]."""
        return self._product(features)

    def encode(self, text: str) -> Tensor:
        """Token ids [P], with the special tokens that the tokenizer itself puts in front."""
        return torch.tensor(self.tokenizer(text)["input_ids"], dtype=torch.long)

    def encode_chat(self, chat: Chat) -> Tensor:
        """Token ids [P] of a chat by the tokenizer's own template, up to where the answer begins.

        Raises:
            ModelError: the tokenizer has no template.
            PromptError: the template refuses the chat.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(
                f"model {self.name!r} has no chat template: give a plain prompt, or set chat_template of its tokenizer"
            )
        ids = render(self.tokenizer, chat.described(), answering=True)["input_ids"]
        self._chats.setdefault(tuple(ids), chat)
        return torch.tensor(ids, dtype=torch.long)

    def chat_of(self, prompt: Tensor) -> Chat | None:
        """The chat that `encode_chat` made these tokens [P] of; None for a plain prompt."""
        return self._chats.get(tuple(prompt.tolist()))

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
        network = copy.deepcopy(self.module).float().requires_grad_()
        return HuggingFaceDecoder(network, trainable=True, dtype=self.dtype)

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
                f"{self.name!r} ({type(model).__name__}) changes its logits after the output layer or keeps more "
                "than keys and values; only plain decoder transformers are supported"
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


def _left_padded(prompts: Prompts, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts as one right-aligned batch [U, P], and the number of padding columns [U] of each."""
    longest = max(prompt.numel() for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[longest - prompt.numel() :] = prompt
    padding = torch.tensor([longest - prompt.numel() for prompt in prompts])
    return tokens.to(device), padding.to(device)
