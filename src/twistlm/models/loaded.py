"""Models that a user has loaded himself: a base model, or one of transformers with its tokenizer."""

from typing import Any

from twistlm.core.errors import ModelError
from twistlm.models.base import BaseLM
from twistlm.models.local import is_here, safely

# What a base model has and no model of transformers.
PARTS = ("vocab_size", "start", "advance", "logits")


def as_base_lm(given: Any) -> BaseLM:
    """A base model of whatever was loaded.

    Args:
        given: a base model; a causal language model of transformers, whose tokenizer is read from the folder (or the
            earlier download) that it was loaded from; or the pair (model, tokenizer). A model of transformers is put
            into evaluation mode and its weights are frozen.

    Raises:
        ModelError: it is something else, the tokenizer is not on this machine, or the architecture is not supported.
    """
    if all(hasattr(given, part) for part in PARTS):
        lm: BaseLM = given
        return lm
    from transformers import PreTrainedModel

    model, tokenizer = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise ModelError(
            f"{type(model).__name__} is no causal language model; give a registered name, a folder, a hub name, a "
            "loaded AutoModelForCausalLM, or a pair (model, tokenizer)"
        )
    from twistlm.models.huggingface import HuggingFaceLM

    name = model.name_or_path or type(model).__name__
    return HuggingFaceLM(model.eval(), _tokenizer(name) if tokenizer is None else tokenizer, name)


def _tokenizer(name: str) -> Any:
    """The tokenizer beside a model's weights.

    Raises:
        ModelError: there is none on this machine.
    """
    from transformers import AutoTokenizer

    try:
        if is_here(name):
            place, how = safely(name)
            return AutoTokenizer.from_pretrained(place, **how)
        reason = "there is no such folder"
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
    raise ModelError(
        f"no tokenizer was found for the loaded model {name!r} ({reason}); give the pair (model, tokenizer)"
    )
