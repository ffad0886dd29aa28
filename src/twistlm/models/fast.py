"""A transformer of a kind that is known: arranged to be run (`packing`), over a cache made for prefixes (`cache`)."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from twistlm.core.kernels.threads import alone
from twistlm.models.attention import attending, by_column, can_attend
from twistlm.models.base import DecoderState, Prompts
from twistlm.models.cache import GrowingLayer, PrefixLayer
from twistlm.models.groups import Groups
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

# Tokens whose activations a trainable network holds at a time: at most, and at least, and bytes of them, at so many for
# each number of a hidden state (200 kB in a layer of GPT-2's width).
TRAINING_TOKENS, FEWEST_TRAINING_TOKENS, ACTIVATIONS, BYTES_EACH = 1024, 256, 600_000_000, 270
# Columns of prompts that take the memory of one such token, if several prompts are read before their sequences.
COLUMNS_PER_TOKEN = 32
# Tokens of sequences, with their prompts', that run in one pass without gradient.
PASS_TOKENS = 16_384
# Kinds of models (`model_type`) that are right when they are run in parts: tests/models/test_every.py.
_KINDS = """
afmoe apertus arcee aria_text beam bert bert-generation big_bird biogpt bitnet bloom codegen cohere cohere2
cohere2_moe ctrl cwm dots1 electra emu3_text_model ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo
flint gemma gemma2 gemma3_text gemma4_text gemma4_unified_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neo
gpt_neox gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa granitemoeshared
helium hunyuan_v1_dense hy_v3 hyperclovax jais2 kolibri1 laguna lfm2 llama llama4_text megatron-bert mellum
mimo_v2_flash minimax_m2 minimax_m3_vl_text ministral ministral3 mistral mixtral mllama_text_model
modernbert-decoder moshi mpt nanochat nemotron olmo olmo2 olmo3 olmoe opt persimmon phi phi3 phi4_multimodal
phimoe qwen2 qwen2_moe qwen3 qwen3_moe rembert roc_bert seed_oss smollm3 solar_open stablelm starcoder2
vaultgemma whisper xglm
"""
KNOWN = frozenset(_KINDS.split())


class FastDecoder:
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

    def trainable_copy(self) -> "FastDecoder":
        """An independent copy of the network in float32 whose parameters train.

        It samples in this one's precision: the weights account for the very values that were drawn from.
        """
        return FastDecoder(in_float32(self.module).requires_grad_(), trainable=True, dtype=self.dtype)

    def adapted_copy(self, adapt: Callable[[nn.Module], None], merge: Callable[[nn.Module], None]) -> "FastDecoder":
        """The network on the very same frozen weights, with what `adapt` adds to train.

        Only matrices that are packed here (those of linear layers on the CPU) are copied, in this one's precision.
        `merge` takes out again what `adapt` put into a network.
        """
        adapt(network := sharing_copy(self.module))
        return FastDecoder(network, trainable=True, dtype=self.dtype, merge=merge)

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
