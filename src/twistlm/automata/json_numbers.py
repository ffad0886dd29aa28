"""Numbers as JSON writes them, by the bounds of what they are."""

import re
from dataclasses import dataclass
from decimal import Decimal

from twistlm.core.errors import ConfigError

FRACTION, ZEROS = r"\.[0-9]+", r"(?:\.0+)?"
INTEGER = rf"-?(?:0|[1-9][0-9]*){ZEROS}(?:[eE]\+?[0-9]+)?"
NUMBER = rf"-?(?:0|[1-9][0-9]*)(?:{FRACTION})?(?:[eE][+-]?[0-9]+)?"
# Of a pattern that has each of some numbers, or of their last digits.
MOST_LISTED = 1000
# Of a bound: engines limit how deep a pattern nests.
MOST_DIGITS = 40


def integers(low: int | None, high: int | None, step: int = 1) -> str:
    """The pattern of the multiples of `step` between two bounds, which are among them; None is no bound.

    They are written without an exponent.

    Raises:
        ConfigError: there are none, too many for their step, or a bound has too many digits.
    """
    ways = ["-?0"] if (low is None or low <= 0) and (high is None or high >= 0) else []
    ways += _multiples(1 if low is None else max(1, low), high, step)
    ways += ["-" + way for way in _multiples(1 if high is None else max(1, -high), None if low is None else -low, step)]
    return _either(ways) + ZEROS


@dataclass(frozen=True)
class Bound:
    """A whole number at which numbers begin or end, itself among them or not."""

    value: int
    included: bool

    def __neg__(self) -> "Bound":
        return Bound(-self.value, self.included)


def numbers(low: Bound | None, high: Bound | None) -> str:
    """The pattern of the numbers between two bounds, written without an exponent; None is no bound.

    Raises:
        ConfigError: there are none, or a bound has too many digits.
    """
    ways = _decimals(low, high)
    ways += ["-" + way for way in _decimals(high and -high, low and -low)]
    return _either(ways)


def equal(value: float) -> str:
    """The pattern of a number: written out, and with an exponent if that is how Python writes it."""
    sign = "-?" if value == 0 else "-" if value < 0 else ""
    whole, _, fraction = format(abs(Decimal(repr(value))), "f").partition(".")
    digits = fraction.rstrip("0")
    ways = [whole + (rf"\.{digits}0*" if digits else ZEROS)]
    mantissa, _, exponent = repr(abs(value)).partition("e")
    if exponent:
        before = "-" if int(exponent) < 0 else r"\+?"
        ways.append(f"{re.escape(mantissa)}[eE]{before}0*{abs(int(exponent))}")
    return f"{sign}(?:{'|'.join(ways)})"


def _either(ways: list[str]) -> str:
    if not ways:
        raise ConfigError("no number is allowed")
    return f"(?:{'|'.join(ways)})"


def _decimals(low: Bound | None, high: Bound | None) -> list[str]:
    """Patterns of the numbers between two bounds that have no sign."""
    if low is None or low.value < 0:
        low = Bound(0, included=True)
    if high is not None and high.value <= low.value:
        return [f"{low.value}{ZEROS}"] if high.value == low.value and high.included and low.included else []
    first, last = low.value + (not low.included), None if high is None else high.value - 1
    whole = ["0"] if first == 0 else []
    ways = [f"{way}(?:{FRACTION})?" for way in whole + _positive(max(1, first), last)]
    ways += [] if low.included else [rf"{low.value}\.[0-9]*[1-9][0-9]*"]
    return ways + ([f"{high.value}{ZEROS}"] if high is not None and high.included else [])


def _multiples(low: int, high: int | None, step: int) -> list[str]:
    """Patterns of the multiples from a bound above 0 on."""
    if step == 1:
        return _positive(low, high)
    if high is not None and high - low < MOST_LISTED * step:
        return [str(number) for number in range(-(-low // step) * step, high + 1, step)]
    # Their last digits tell which they are if a power of ten is a multiple, too.
    places = next((places for places in range(1, 19) if 10**places % step == 0), None)
    if places is None or 10**places > MOST_LISTED * step:
        raise ConfigError(f"multipleOf {step} (which takes a minimum and a maximum that are close)")
    power, ways = 10**places, []
    for last in range(0, power, step):
        before = _positive(max(1, -((last - low) // power)), None if high is None else (high - last) // power)
        ways += [f"{way}{last:0{places}}" for way in before]
        ways += [str(last)] if low <= last and (high is None or last <= high) else []
    return ways


def _positive(low: int, high: int | None) -> list[str]:
    """Patterns of the integers from a bound above 0 on."""
    if max(low, high or 0) >= 10**MOST_DIGITS:
        raise ConfigError(f"a bound of more than {MOST_DIGITS} digits")
    if high is not None and high < low:
        return []
    first, length = str(low), len(str(low))
    if high is None:
        return [*_between(first, "9" * length), f"[1-9][0-9]{{{length},}}"]
    last = str(high)
    if len(last) == length:
        return _between(first, last)
    longer = [f"[1-9][0-9]{{{length},{len(last) - 2}}}"] if len(last) > length + 1 else []
    return [*_between(first, "9" * length), *longer, *_between("1" + "0" * (len(last) - 1), last)]


def _between(first: str, last: str) -> list[str]:
    """Patterns of the numbers between two of as many digits."""
    if first == last:
        return [first]
    at = next(at for at, (low, high) in enumerate(zip(first, last, strict=True)) if low != high)
    among = _branch(int(first[at]) + 1, int(last[at]) - 1, len(first) - at - 1)
    ways = [first[at] + _beyond(first[at + 1 :], up=True), *among, last[at] + _beyond(last[at + 1 :], up=False)]
    return [first[:at] + way for way in ways]


def _beyond(digits: str, *, up: bool) -> str:
    """The pattern of as many digits that are these or more; or these or less."""
    found = ""
    for behind, digit in enumerate(reversed(digits)):
        others = _branch(int(digit) + 1, 9, behind) if up else _branch(0, int(digit) - 1, behind)
        found = f"(?:{'|'.join([digit + found, *others])})"
    return found


def _branch(low: int, high: int, behind: int) -> list[str]:
    """Patterns of a digit of a range, and so many more of any kind."""
    return [f"[{low}-{high}][0-9]{{{behind}}}"] if low <= high else []
