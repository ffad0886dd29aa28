"""What was given on the command line, held against what each option may be (`twistlm.cli.options`)."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twistlm.core.errors import ConfigError

# Characters of a value that a message quotes.
QUOTED = 80


def validated(command: Callable[..., None], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a command, each checked by its own annotation.

    Raises:
        ConfigError: one is out of range; the message names it, its value and its limit.
    """
    # At the first command, not at the first `--help`.
    from pydantic import ConfigDict, ValidationError, validate_call

    @functools.wraps(command)
    def capture(**arguments: Any) -> dict[str, Any]:
        return arguments

    # The options of experiments come as an object, whose fields are to be looked at too.
    check = validate_call(config=ConfigDict(revalidate_instances="always"))(capture)
    try:
        return check(**given)
    except ValidationError as error:
        raise ConfigError("; ".join(map(_message, _own(error.errors(include_url=False))))) from None


def _own(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without those that follow from others: a tuple whose only value is refused is too short, too."""
    within = {each["loc"][:end] for each in errors for end in range(len(each["loc"]))}
    return [each for each in errors if each["type"] != "too_short" or each["loc"] not in within]


def _message(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors in the words of this package."""
    name = next((part for part in reversed(error["loc"]) if isinstance(part, str)), "argument")
    value, limits = _short(str(error["input"])), error.get("ctx", {})
    match error["type"]:
        case "greater_than_equal":
            wanted = f"must be at least {limits['ge']:g}"
        case "greater_than":
            wanted = "must be a number" if limits["gt"] == -math.inf else f"must be above {limits['gt']:g}"
        case "less_than_equal":
            wanted = f"must be at most {limits['le']:g}"
        case "less_than":
            wanted = "must be finite" if limits["lt"] == math.inf else f"must be below {limits['lt']:g}"
        case "too_short":
            return f"{name}: give at least {limits['min_length']}"
        case "value_error":
            return f"{name} {limits['error']}"
        case _:
            wanted = f"is not valid ({error['msg']})"
    return f"{name} {wanted}, not {value}"


def _short(text: str) -> str:
    return text if len(text) <= QUOTED else text[: QUOTED - 1] + "…"
