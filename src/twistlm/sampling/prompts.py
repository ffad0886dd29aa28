"""Sets of prompts: where a target is sampled, each with a name and a share; and the files they are read from."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twistlm.core.errors import PromptError
from twistlm.core.plain import make_plain
from twistlm.models.chats import Chat, Message, chat

# How much of a prompt an error or a table quotes.
QUOTED = 60

Entry = str | Chat
"""A prompt: a text to continue, or a chat to answer."""


@dataclass(frozen=True)
class Prompts:
    """One or more prompts, all of them texts or all of them chats.

    Attributes:
        entries: the prompts, no two of them alike.
        names: what reports and `prompt=` call them; by default their numbers, from 1.
        weights: shares of the set, which need not sum to 1; by default all alike.

    Raises:
        PromptError: there are none, one is empty or no text, two are alike, or texts and chats are mixed; the message
            says which.
    """

    entries: tuple[Entry, ...]
    names: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check everything, and fill in names and weights."""
        make_plain(self)
        count = len(self.entries)
        if count == 0:
            raise PromptError("there is no prompt; give at least one")
        object.__setattr__(self, "names", self.names or tuple(str(number + 1) for number in range(count)))
        object.__setattr__(self, "weights", self.weights or (1.0,) * count)
        if len(self.names) != count or len(self.weights) != count:
            raise PromptError(
                f"{count} prompts have {len(self.names)} names and {len(self.weights)} weights; give one each, or none"
            )
        for name, entry, weight in zip(self.names, self.entries, self.weights, strict=True):
            _check(f"prompt {name!r}" if count > 1 else "prompt", entry, weight)
        for name, entry in zip(self.names, self.entries, strict=True):
            if not isinstance(name, str) or not name or _has_surrogates(name):
                raise PromptError(f"name {name!r} of a prompt is no text; give one")
            if isinstance(entry, Chat) != self.are_chats:
                raise PromptError(f"prompt {name!r} is of another kind than the first: all are texts, or all are chats")
        if min(self.shares) <= 0:
            raise PromptError(f"weights {min(self.weights)} and {max(self.weights)} are too far apart; scale them")
        _refuse_repeated("the name", self.names, [f"prompt {number + 1}" for number in range(count)])
        _refuse_repeated("the prompt", self.entries, [f"prompt {name!r}" for name in self.names])

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        return repr(shown(self.entries[0])) if len(self) == 1 else f"{len(self)} prompts"

    @property
    def are_chats(self) -> bool:
        """Whether they are chats to answer."""
        return isinstance(self.entries[0], Chat)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, summing to 1."""
        # Scaled first, because a sum may be more than a float holds.
        largest = max(self.weights)
        total = math.fsum(weight / largest for weight in self.weights)
        return tuple(weight / largest / total for weight in self.weights)

    def index(self, name: str) -> int | None:
        """The position of the prompt of that name, or that is that text; None if there is none."""
        for known in (self.names, [shown(entry) for entry in self.entries]):
            if name in known:
                return list(known).index(name)
        return None

    def select(self, indices: Sequence[int]) -> "Prompts":
        """Those at `indices`, with their names and weights."""
        return Prompts(
            tuple(self.entries[i] for i in indices),
            tuple(self.names[i] for i in indices),
            tuple(self.weights[i] for i in indices),
        )

    def alike(self, given: Entry) -> Entry:
        """A new prompt in the manner of these: where they are chats, a text is a user's, after the system's message.

        Raises:
            PromptError: it is a chat, and these are texts.
        """
        if isinstance(given, Chat):
            if not self.are_chats:
                raise PromptError("a chat was given for a target of plain texts; give a text")
            return given
        if not self.are_chats:
            return given
        systems = {_system(entry) for entry in self.entries if isinstance(entry, Chat)}
        return chat(given, system=systems.pop() if len(systems) == 1 else None)

    def spec(self) -> dict[str, Any]:
        """JSON values, as arguments of a target: `prompt` for a single text, else `prompts`."""
        if len(self) == 1 and isinstance(self.entries[0], str):
            return {"prompt": self.entries[0]}
        return {"prompts": self.described()}

    def described(self) -> list[dict[str, Any]]:
        """JSON values: content, name and weight of each."""
        rows = zip(self.entries, self.names, self.weights, strict=True)
        return [{"content": content(entry), "name": name, "weight": weight} for entry, name, weight in rows]

    @staticmethod
    def of(given: "Prompts | Entry | Iterable[Entry]") -> "Prompts":
        """A set from whatever a user gives: a set, one prompt, or several.

        Raises:
            PromptError: it is something else, or no such set can be.
        """
        if isinstance(given, Prompts):
            return given
        if isinstance(given, str | Chat):
            return Prompts((given,))
        if isinstance(given, Mapping) or not isinstance(given, Iterable):
            raise PromptError(
                f"prompts are of type {type(given).__name__}; give a text, a chat (twistlm.chat), a list of them, or "
                "Prompts"
            )
        return Prompts(tuple(given))

    @staticmethod
    def from_rows(
        rows: Any,
        column: str = "prompt",
        *,
        as_chat: bool = False,
        system: str | None = None,
        where: Callable[[int], str] = "row {}".format,
    ) -> "Prompts":
        """A set from a data set: anything that yields mappings (datasets.Dataset, csv.DictReader, a list), or a table.

        Args:
            rows: a text or chat in `column` (or chats as lists of messages in "messages"); "name" and "weight" too, if
                there are such columns; or texts and chats themselves.
            column: which.
            as_chat: texts are what a user says, to be answered.
            system: the system's message of those chats.
            where: what an error calls row k, from 1.

        Raises:
            PromptError: a row has no such column, or what it holds is no prompt; the message says which.
        """
        read = [_row(each, column, as_chat, system, where(number)) for number, each in enumerate(_listed(rows), 1)]
        places = [where(number + 1) for number in range(len(read))]
        entries = [entry for entry, _, _ in read]
        for entry, place in zip(entries, places, strict=True):
            if isinstance(entry, Chat) != isinstance(entries[0], Chat):
                kinds = ("a text", "a chat") if isinstance(entries[0], Chat) else ("a chat", "a text")
                raise PromptError(f"{place}: {kinds[0]}, and {places[0]} is {kinds[1]}; all are texts, or all chats")
        names = tuple(name or str(number) for number, (_, name, _) in enumerate(read, 1))
        _refuse_repeated("the prompt", entries, places)
        _refuse_repeated("the name", names, places)
        return Prompts(tuple(entries), names, tuple(weight for _, _, weight in read))

    @staticmethod
    def read(
        path: str | Path, column: str = "prompt", *, as_chat: bool = False, system: str | None = None
    ) -> "Prompts":
        """A set from a file: .txt (a prompt a line), .jsonl or .csv (with columns as for `from_rows`).

        Raises:
            PromptError: it is missing, empty, not UTF-8, of another kind, or a line is no prompt; the message says
                which line.
        """
        path = Path(path)
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise PromptError(f"prompts are read from {', '.join(_READERS)} and not from {str(path)!r}; rename it")
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise PromptError(f"the prompts {str(path)!r} cannot be read ({error.strerror}); name a file") from error
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise PromptError(f"{path}, line {line}: not UTF-8; save the file in that encoding") from error
        if not text.strip():
            raise PromptError(f"{path} is empty; write a prompt into each line")
        lines, rows = reader(text, path, column)

        def where(number: int) -> str:
            return f"{path}, line {lines[number - 1]}"

        return Prompts.from_rows(rows, column, as_chat=as_chat, system=system, where=where)


def shown(entry: Entry) -> str:
    """A prompt as a short text: what a user said last, of a chat."""
    return entry if isinstance(entry, str) else entry.question


def quoted(entry: Entry) -> str:
    """The same cut for a table."""
    text = " ".join(shown(entry).split())
    return text if len(text) <= QUOTED else f"{text[: QUOTED - 1]}…"


def content(entry: Entry) -> Any:
    """A prompt as JSON values: a text, or a list of messages."""
    return entry if isinstance(entry, str) else entry.described()


def _system(entry: Chat) -> str | None:
    first = entry.messages[0]
    return first.content if first.role == "system" else None


def _check(what: str, entry: Entry, weight: float) -> None:
    if isinstance(entry, str):
        if not entry:
            raise PromptError(f"{what} is empty; give the text that the model should continue")
        if _has_surrogates(entry):
            raise PromptError(f"{what} {entry!r} is not text: bytes that are not UTF-8 became parts of characters")
    elif not isinstance(entry, Chat):
        raise PromptError(f"{what} is of type {type(entry).__name__}; give a text, or a chat (twistlm.chat)")
    if not (isinstance(weight, int | float) and 0 < weight < math.inf):
        raise PromptError(f"{what} has weight {weight}; give a number above 0")


def _has_surrogates(text: str) -> bool:
    return not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text)


def _refuse_repeated(what: str, values: Sequence[Any], where: Sequence[str]) -> None:
    first: dict[Any, str] = {}
    for value, place in zip(values, where, strict=True):
        if value in first:
            said = value if isinstance(value, str) else shown(value)
            raise PromptError(f"{what} {said[:QUOTED]!r} is there twice ({first[value]} and {place}); take one out")
        first[value] = place


# --- Rows ----------------------------------------------------------------------------------------------------


def _listed(rows: Any) -> list[Any]:
    """Rows one by one; what iterates over its columns is asked for records (pandas, polars, arrow)."""
    for method, arguments in (("to_dicts", ()), ("to_pylist", ()), ("to_dict", ("records",))):
        if hasattr(rows, "columns") and hasattr(rows, method):
            return list(getattr(rows, method)(*arguments))
    if isinstance(rows, str | Mapping) or not isinstance(rows, Iterable):
        raise PromptError(f"rows are of type {type(rows).__name__}; give a list of mappings, a data set or a table")
    return list(rows)


def _row(row: Any, column: str, as_chat: bool, system: str | None, where: str) -> tuple[Entry, str, float]:
    """The prompt, name ("" if it has none) and weight of one row."""
    fields: Mapping[str, Any] = row if isinstance(row, Mapping) else {column: row}
    chosen = column if column in fields or "messages" not in fields else "messages"
    if chosen not in fields:
        has = ", ".join(str(name) for name in fields) or "none"
        raise PromptError(f"{where}: there is no column {column!r}; it has {has}: name the one with the prompts")
    try:
        entry, number = _entry(fields[chosen], as_chat, system), _weight(fields.get("weight"))
        name = _name(fields.get("name"))
    except PromptError as error:
        raise PromptError(f"{where}: {error}") from error
    _check(f"{where}: the prompt", entry, number)
    return entry, name, number


def _weight(given: Any) -> float:
    """1 where there is none."""
    try:
        return 1.0 if given in (None, "") else float(str(given))
    except ValueError as error:
        raise PromptError(f"weight {str(given)[:QUOTED]!r} is no number; give one above 0") from error


def _name(given: Any) -> str:
    """ "" where there is none: a table has NaN there."""
    if given is None or given != given:
        return ""
    if not isinstance(given, str | int):
        raise PromptError(f"name {str(given)[:QUOTED]!r} is of type {type(given).__name__}; give a text or a number")
    return str(given)


def _entry(given: Any, as_chat: bool, system: str | None) -> Entry:
    if isinstance(given, str):
        if not given.strip():
            raise PromptError("a blank line is no prompt; take it out")
        if system is not None and not as_chat:
            raise PromptError("a text, and the system's message is for chats: read it as a chat, or leave that out")
        return chat(given, system=system) if as_chat else given
    if not isinstance(given, Chat) and not (isinstance(given, Sequence) and given):
        empty = given is None or given != given or given == []
        raise PromptError(
            "there is no prompt; give one, or take the row out"
            if empty
            else f"a prompt is a text or a list of messages, not {type(given).__name__}"
        )
    made = given if isinstance(given, Chat) else Chat(tuple(given))
    if system is None:
        return made
    if _system(made) is not None:
        raise PromptError("the chat has a system's message of its own; leave the other out")
    return Chat((Message("system", system), *made.messages))


# --- Files: the lines of the rows, and the rows ----------------------------------------------------------------


def _plain(text: str, path: Path, column: str) -> tuple[list[int], list[Any]]:
    rows = text.removesuffix("\n").split("\n")
    return list(range(1, len(rows) + 1)), [{column: row.removesuffix("\r")} for row in rows]


def _json_lines(text: str, path: Path, column: str) -> tuple[list[int], list[Any]]:
    rows: list[Any] = []
    # Not splitlines: a text may hold U+2028, which JSON does not escape.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        if not line.strip():
            raise PromptError(f"{path}, line {number}: a blank line is no prompt; take it out")
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{path}, line {number}: not JSON ({error}); write one object a line") from error
    return list(range(1, len(rows) + 1)), rows


def _table(text: str, path: Path, column: str) -> tuple[list[int], list[Any]]:
    reader = csv.reader(io.StringIO(text), strict=True)
    lines: list[int] = []
    rows: list[Any] = []
    heading: list[str] = []
    try:
        for row in reader:
            # A row may go over several lines: where it ends is known, and that is where one looks.
            place = f"{path}, line {reader.line_num}"
            if not row:
                raise PromptError(f"{place}: a blank line is no prompt; take it out")
            if not heading:
                heading = row
                continue
            if len(row) != len(heading):
                raise PromptError(
                    f"{place}: {len(row)} fields under {len(heading)} headings; put a text with commas into quotes"
                )
            lines.append(reader.line_num)
            rows.append(dict(zip(heading, row, strict=True)))
    except csv.Error as error:
        raise PromptError(f"{path}, line {reader.line_num}: not CSV ({error}); mend the line") from error
    if not rows:
        raise PromptError(f"{path} has a heading and no rows; write a prompt into each")
    return lines, rows


_READERS = {".txt": _plain, ".jsonl": _json_lines, ".csv": _table}
