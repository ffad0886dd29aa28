"""A target as JSON, and what such a description may name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from twistlm.core.errors import ConfigError, ModelError
from twistlm.core.html import table
from twistlm.core.registry import available
from twistlm.core.storage import STRICT
from twistlm.models.chats import Chat, Message
from twistlm.models.local import is_folder, is_here
from twistlm.potentials import spec
from twistlm.potentials.protocol import Potential
from twistlm.sampling.prompts import Prompts, quoted

# Prompts that a notebook shows.
MOST_PROMPTS = 5


class Loading(TypedDict, total=False):
    """How a base model is loaded."""

    dtype: str
    device: str


@dataclass(frozen=True)
class PromptFields:
    """A prompt of a set as JSON: a text, or the messages of a chat."""

    __pydantic_config__ = STRICT

    content: str | tuple[Message, ...]
    name: str
    weight: float


@dataclass(frozen=True)
class TargetFields:
    """A target as JSON: the arguments of `Target`, with the potential as `potentials.spec` describes it.

    A single text is its `prompt`; a chat, or a set, its `prompts`.
    """

    __pydantic_config__ = STRICT

    model: str
    potential: Mapping[str, Any]
    num_tokens: int
    prompt: str | None = None
    prompts: tuple[PromptFields, ...] = ()
    eos: str = "absorb"
    dtype: str = "auto"
    device: str = "cpu"
    identity: str | None = None


def prompts_in(described: TargetFields) -> Prompts:
    """The prompts of a description."""
    if described.prompt is not None:
        return Prompts.of(described.prompt)
    fields = described.prompts
    entries = tuple(each.content if isinstance(each.content, str) else Chat(each.content) for each in fields)
    return Prompts(entries, tuple(each.name for each in fields), tuple(each.weight for each in fields))


def refuse_downloads(described: TargetFields) -> None:
    """Raises ModelError where the description of a target names a model that would have to be downloaded."""
    for kind, names in (("model", [described.model]), ("classifier", named_models(described.potential))):
        for name in names:
            if not (name in available(kind) or is_here(name)):
                raise ModelError(
                    f"the {kind} {name!r} is no registered name, no folder here or beside the run, and has not been "
                    "downloaded before; put a folder beside the run. A run folder downloads nothing by itself: if it "
                    "is a name of the hub that you trust, fetch it with `hf download` first"
                )


def as_html(target: Any) -> str:
    """A `Target` for notebooks."""
    first = [quoted(entry) for entry in target.prompts.entries[:MOST_PROMPTS]]
    rows = [
        ("base model p₀", target.model_name),
        ("potential φ", repr(target.potential)),
        ("prompts", "\n".join(first)),
        ("new tokens", f"{target.num_tokens}, " + ("up to EOS" if target.eos == "absorb" else "EOS like any other")),
    ]
    return table("Target σ ∝ p₀φ", (), rows, more=len(target.prompts) - len(first))


def to_download(models: Sequence[str], potential: Potential) -> list[str]:
    """Which of the models, and of those that a potential says it loads, are not registered and no folders."""
    try:
        named = named_models(spec(potential))
    except ConfigError:
        named = []
    local = available("model").keys() | available("classifier").keys()
    return [name for name in dict.fromkeys([*models, *named]) if name not in local and not Path(name).exists()]


def named_models(described: Mapping[str, Any]) -> list[str]:
    """The models in the description of a potential, in those of its parts too."""
    names = [described["model"]] if isinstance(described.get("model"), str) else []
    parts = [part for value in described.values() for part in (value if isinstance(value, list) else [value])]
    return names + [name for part in parts if isinstance(part, Mapping) for name in named_models(part)]


def found_near(fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A description whose models, those of the potential's parts too, are where they are now.

    Args:
        fields: of a target or a potential.
        folder: of what was described, in which or beside which a model may be by now.
    """

    def found(value: Any) -> Any:
        if isinstance(value, Mapping):
            return found_near(value, folder)
        return [found(each) for each in value] if isinstance(value, list | tuple) else value

    return {name: _near(value, folder) if name == "model" else found(value) for name, value in fields.items()}


def _near(model: Any, folder: Path) -> Any:
    """Where a model is: where it was, by a name that may be relative, or in or beside the folder."""
    if not isinstance(model, str) or model in {*available("model"), *available("classifier")} or is_here(model):
        return model
    name = Path(model).name
    near = map(str, (folder / name, folder.parent / model, folder.parent / name))
    return next(filter(is_folder, near), model)
