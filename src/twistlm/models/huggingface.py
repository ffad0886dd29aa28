"""Any causal language model of transformers, decoded incrementally with a key–value cache.

The cache is pre-allocated and grows by half, so appending a token writes one column instead of copying everything;
it is reordered in place, and of the columns in use only those rows are copied whose parent is another row.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache, DynamicLayer

from twistlm.categorical import output_product
from twistlm.errors import ModelError
from twistlm.models.attention import decoding
from twistlm.models.packaged import without_progress_bars
from twistlm.registry import available
from twistlm.types import DecoderState, Prompts

DTYPES: dict[str, Any] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer in buffers [≥ U, heads, capacity, d] of which the first `used` columns count."""

    def __init__(self) -> None:
        super().__init__()
        self.used = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate for the prompt and some more."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = self.values = key_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append columns; returns views of all columns in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.used + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            self.keys = _grown(self.keys, key_states, self.used, end)
            self.values = _grown(self.values, value_states, self.used, end)
        rows = key_states.shape[0]
        self.keys[:rows, :, self.used : end] = key_states
        self.values[:rows, :, self.used : end] = value_states
        self.used = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.used

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep rows `beam_idx` [U'], with repetition."""
        self.keys = _selected(self.keys, beam_idx, self.used)
        self.values = _selected(self.values, beam_idx, self.used)


def _grown(buffer: Tensor, states: Tensor, used: int, end: int) -> Tensor:
    rows, heads, _, width = states.shape
    grown = states.new_empty(rows, heads, end + max(16, end // 2), width)
    grown[:, :, :used] = buffer[:rows, :, :used]
    return grown


def _selected(buffer: Tensor, rows: Tensor, used: int) -> Tensor:
    count = rows.shape[0]
    if count > buffer.shape[0]:
        grown = buffer.new_empty(count, *buffer.shape[1:])
        torch.index_select(buffer[:, :, :used], 0, rows, out=grown[:, :, :used])
        return grown
    moved = (rows != torch.arange(count, device=rows.device)).nonzero().squeeze(-1)
    sources = rows[moved]
    in_use = buffer[:, :, :used]
    kept = sources[sources < count]
    if torch.equal(rows[kept], kept):
        # No source is overwritten (the first child of a prefix keeps its row), so each row is copied once.
        torch._foreach_copy_([in_use[i] for i in moved.tolist()], [in_use[i] for i in sources.tolist()])
    else:
        in_use[moved] = in_use.index_select(0, sources)
    return buffer


@dataclass(frozen=True)
class PrefixCache:
    """Key–value cache of U prefixes, right-aligned: `padding` [U] columns on the left mean nothing."""

    layers: Cache
    padding: Tensor
    padded: bool


class HuggingFaceDecoder:
    """A transformer without its output layer, reading tokens for `TwistedLM`.

    Args:
        module: the `base_model` of a causal LM.
        trainable: keep gradients through `features` (a twist with its own network).
    """

    def __init__(self, module: nn.Module, trainable: bool = False) -> None:
        self.module = module.eval()
        self.trainable = trainable
        module.requires_grad_(trainable)

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network."""
        return next(self.module.parameters()).dtype

    def start(self, prompts: Prompts) -> DecoderState:
        """Read U prompts in one padded batch; hidden states [U, d] of their last tokens."""
        tokens, padding = _left_padded(prompts, self.device)
        padded = bool(padding.any())
        layers = Cache(layer_class_to_replicate=GrowingLayer)
        hidden = self._forward(tokens, padding if padded else None, layers, 0)
        return DecoderState(hidden[:, -1], PrefixCache(layers, padding, padded))

    def advance(self, state: DecoderState, parents: Tensor, tokens: Tensor) -> DecoderState:
        """Append one token to each of the prefixes `parents`; the cache of `state` is moved, not copied."""
        cache: PrefixCache = state.cache
        padding = cache.padding
        if parents.shape != padding.shape or not torch.equal(
            parents, torch.arange(len(padding), device=parents.device)
        ):
            for layer in cache.layers.layers:
                layer.reorder_cache(parents)
            padding = padding[parents]
        used = cache.layers.get_seq_length()
        hidden = self._forward(tokens.unsqueeze(-1), padding if cache.padded else None, cache.layers, used)
        return DecoderState(hidden[:, -1], PrefixCache(cache.layers, padding, cache.padded))

    def features(self, prompts: Prompts, tokens: Tensor) -> Tensor:
        """Hidden states [B, T, d] before each of tokens [B, T], in one pass."""
        prefix, padding = _left_padded(prompts, self.device)
        inputs = torch.cat([prefix, tokens[:, :-1].to(self.device)], -1)
        hidden = self._forward(inputs, padding if bool(padding.any()) else None, None, 0)
        return hidden[:, prefix.shape[1] - 1 :]

    def _forward(self, tokens: Tensor, padding: Tensor | None, layers: Cache | None, used: int) -> Tensor:
        columns = torch.arange(used + tokens.shape[1], device=tokens.device)
        mask = None
        positions = columns[used:].unsqueeze(0).expand(tokens.shape[0], -1)
        if padding is not None:
            mask = (columns >= padding.unsqueeze(-1)).long()
            positions = (positions - padding.unsqueeze(-1)).clamp_min(0)
        gradient = torch.set_grad_enabled(self.trainable and torch.is_grad_enabled())
        with gradient, decoding(self.module, self.dtype, self.device):
            output = self.module(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=layers,
                use_cache=layers is not None,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden


class HuggingFaceLM(HuggingFaceDecoder):
    """A causal LM with its tokenizer, as the base model p₀. Its weights are frozen.

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
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.output = model.get_output_embeddings()
        self.vocab_size: int = self.output.weight.shape[0]
        self.feature_size: int = self.output.weight.shape[1]
        eos = tokenizer.eos_token_id if tokenizer is not None else model.config.eos_token_id
        self.eos_token_id: int | None = eos[0] if isinstance(eos, list) else eos
        self.max_length: int | None = getattr(model.config, "max_position_embeddings", None)
        self._check_architecture()

    @property
    def unembedding(self) -> Tensor:
        """The output layer's weight [V, d]."""
        weight: Tensor = self.output.weight
        return weight

    def logits(self, features: Tensor) -> Tensor:
        """The output layer: [..., V]."""
        return output_product(features, self.output.weight, self.output.bias)

    def encode(self, text: str) -> Tensor:
        """Token ids [P], with the special tokens that the tokenizer itself puts in front."""
        return torch.tensor(self.tokenizer(text)["input_ids"], dtype=torch.long)

    def decode(self, sequences: Sequence[Tensor]) -> list[str]:
        """Texts, special tokens skipped."""
        texts: list[str] = self.tokenizer.batch_decode(
            [sequence.tolist() for sequence in sequences], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return texts

    def trainable_copy(self) -> HuggingFaceDecoder:
        """An independent copy of the network in float32 whose parameters train: the start of a separate twist."""
        return HuggingFaceDecoder(copy.deepcopy(self.module).float(), trainable=True)

    @torch.no_grad()
    def _check_architecture(self) -> None:
        """The split into network and output layer, and a step with the cache, must give what the whole model gives."""
        tokens = torch.arange(1, 5, device=self.device).clamp_max(self.vocab_size - 1).unsqueeze(0)
        whole = self.model(input_ids=tokens, use_cache=False).logits[0, -1].float()
        try:
            state = self.start([tokens[0, :3]])
            state = self.advance(state, torch.zeros(1, dtype=torch.long, device=self.device), tokens[0, 3:])
            split = self.logits(state.features)[0].float()
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            raise ModelError(f"{self.name!r} cannot be decoded with a key–value cache ({error})") from error
        # Half precision differs in the last bits between one pass and two.
        if (whole - split).abs().max() > 0.05 * whole.abs().max().clamp_min(1.0):
            raise ModelError(
                f"{self.name!r} ({type(self.model).__name__}) changes its logits after the output layer or keeps more "
                "than keys and values; only plain decoder transformers are supported"
            )


def load(model: str, *, dtype: str = "auto", device: str = "cpu") -> HuggingFaceLM:
    """A causal LM by registered name (see `twistlm list`), folder, or hub name.

    Args:
        model: what to load.
        dtype: "auto" (as stored), "float32", "bfloat16" or "float16".
        device: a torch device.

    Raises:
        ModelError: nothing of that name is here, and it cannot be had from the hub.
    """
    if dtype not in DTYPES:
        raise ModelError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    names = available("model")
    source: str | Path = names[model].value() if model in names else model
    try:
        with without_progress_bars():
            loaded = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[dtype])
            tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(
            f"cannot load model {model!r}: {reason}; give a folder, a hub name (needs network), or one of the packaged "
            f"models: {', '.join(names)}"
        ) from error
    return HuggingFaceLM(loaded.to(device), tokenizer, model)


def _left_padded(prompts: Prompts, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts as one right-aligned batch [U, P], and the number of padding columns [U] of each."""
    longest = max(prompt.numel() for prompt in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[longest - prompt.numel() :] = prompt
    padding = torch.tensor([longest - prompt.numel() for prompt in prompts])
    return tokens.to(device), padding.to(device)
