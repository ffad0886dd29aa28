"""How a causal language model can be decoded: what it gives token by token, against what it gives as a whole."""

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
import transformers
from torch import Tensor

from twistlm.core.errors import ModelError
from twistlm.core.storage import cache_folder
from twistlm.models.base import Decoder
from twistlm.models.fast import KNOWN, FastDecoder
from twistlm.models.generic import GenericDecoder
from twistlm.models.tail import logits_of, network_of, unwrapped

WAYS: dict[str, Any] = {"fast": FastDecoder, "generic": GenericDecoder}
# Another one whenever what is compared, or decodes, changes.
FORMAT = 1
# Tokens of the prompts that are compared, and of what follows each.
LENGTHS, NEW = (3, 1, 24), 2
# Windows up to so many tokens are passed; longer ones would take seconds.
LONGEST = 300
# What logits may differ by, in parts of the largest. A model in half precision is compared in single precision if it
# has no more parameters than this; a larger one by the root mean square, in parts of that of its logits: single
# numbers differ by up to 16 % (SmolLM2), whatever is right.
ROUNDING, ROUNDING_HALF = 1e-4, 0.25
SMALL = 2**29


def way_of(model: Any, name: str, max_length: int | None, *, remember: bool) -> str:
    """The faster of `WAYS` in which the model agrees with its own forward pass.

    Args:
        model: of transformers, as it was loaded.
        name: how the error calls it.
        max_length: tokens of the longest text that it may be given.
        remember: look up, and keep, what was found for this architecture and configuration in these versions. Only
            for a model that nobody has touched since it was loaded.

    Raises:
        ModelError: it agrees in none: it looks ahead, or what it keeps of a prefix cannot be handed on.
    """
    path = cache_folder() / "ways" / _key(model)
    with suppress(OSError):
        if remember and (found := path.read_text(encoding="utf-8")) in WAYS:
            return found
    found = _compared(model, name, max_length)
    with suppress(OSError):
        if remember:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(found, encoding="utf-8")
    return found


def _key(model: Any) -> str:
    shapes = [(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in model.named_parameters()]
    versions = FORMAT, transformers.__version__, torch.__version__, str(model.device)
    whole = repr((versions, type(model).__qualname__, model.config.to_json_string(use_diff=False), shapes))
    return hashlib.sha256(whole.encode()).hexdigest()[:32]


def _compared(model: Any, name: str, max_length: int | None) -> str:
    given = [parameter for parameter in model.parameters() if parameter.dtype != torch.float32]
    if given and model.num_parameters() <= SMALL and all(parameter.is_floating_point() for parameter in given):
        model = copy.deepcopy(model).float()
    model = unwrapped(model)
    exact = next(model.parameters()).dtype == torch.float32
    reason = f"{type(model).__name__} has no known network"
    for way, kind in WAYS.items():
        if way == "fast" and model.config.model_type not in KNOWN:
            continue
        try:
            found = disagreement(model, kind(network_of(model)), logits_of(model), max_length, exact)
        # Any author's code: what it raises where it is asked for what it cannot do is not for us to list.
        except Exception as error:
            said = str(error).strip().split("\n")[0]
            reason = f"it cannot be decoded token by token ({type(error).__name__}: {said})"
            continue
        if found <= (ROUNDING if exact else ROUNDING_HALF):
            return way
        reason = f"token by token it gives other logits than as a whole (by {100 * found:.2g} %)"
    raise ModelError(f"{name!r} ({type(model).__name__}) is not supported: {reason}")


@torch.no_grad()
def disagreement(
    model: Any, decoder: Decoder, logits: Callable[[Tensor], Tensor], max_length: int | None, exact: bool = True
) -> float:
    """How far the logits of a decoder are from a model's own: NaN if there are such.

    Two texts are read by the model's forward pass at once. Beginnings of several lengths, and two of one length, are
    continued by the decoder side by side, all at once and token by token, prefixes being reordered and doubled, past
    the windows that the configuration names.

    Returns:
        The largest difference, in parts of the largest logit (at least 1); unless `exact`, the root mean square of the
        differences in parts of that of the logits.
    """
    device, room = next(model.parameters()).device, LONGEST if max_length is None else min(LONGEST, max_length)
    windows = [window - 1 for window in _windows(model.config)]
    lengths = [max(1, min(length, room - NEW)) for length in (*LENGTHS, *windows)]
    # Ordinary words from all over the vocabulary: special tokens mean something by themselves.
    size, generator = model.get_output_embeddings().weight.shape[0], torch.Generator().manual_seed(0)
    texts = torch.randint(size // 10, 9 * size // 10, (2, max(lengths) + NEW), generator=generator)
    whole = model(input_ids=texts.to(device), use_cache=False).logits.float()
    begun = [*((0, length) for length in lengths), (1, lengths[0])]
    prompts = [texts[row, :length] for row, length in begun]
    tokens = torch.stack([texts[row, length : length + NEW] for row, length in begun]).to(device)
    expected = torch.stack([whole[row, length - 1 : length + NEW] for row, length in begun])
    # One prompt is read in another way than several.
    pairs = [
        pair
        for count in (1, len(prompts))
        for pair in _pairs(decoder, logits, prompts[:count], tokens[:count], expected[:count])
    ]
    if exact:
        return float(torch.stack([(ours - right).abs().max() for ours, right in pairs]).max()) / max(
            1.0, float(whole.abs().max())
        )
    spread = whole - whole.mean(-1, keepdim=True)
    squares = torch.stack([(ours - right).square().mean() for ours, right in pairs]).max()
    return float((squares / spread.square().mean()).sqrt())


def _pairs(
    decoder: Decoder, logits: Callable[[Tensor], Tensor], prompts: list[Tensor], tokens: Tensor, expected: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of texts [B, T], at once and step by step, and what they should be, of `expected` [B, T + 1, V]."""
    yield logits(decoder.features(prompts, tokens)).float(), expected[:, :-1]
    state, order = decoder.start(prompts), torch.arange(len(prompts), device=tokens.device)
    yield logits(state.features).float(), expected[:, 0]
    for at in range(NEW):
        # Every prefix is moved, and at first one is doubled.
        parents = torch.arange(len(order), device=tokens.device).flip(0)
        parents = torch.cat([parents, parents[:1]]) if at == 0 else parents
        order = order[parents]
        state = decoder.advance(state, parents, tokens[order, at])
        yield logits(state.features).float(), expected[order, at + 1]


def _windows(config: Any) -> set[int]:
    """Lengths at which attention or a state changes by the configuration, as far as they are short."""
    named = config.get_text_config().to_dict().items()
    found = {value for name, value in named if ("window" in name or "chunk" in name) and type(value) is int}
    return {value for value in found if 1 < value < LONGEST}
