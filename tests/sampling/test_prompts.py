"""Sets of prompts and the files they are read from: what is read, and one line that names the line for what is not."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from twistlm import Prompts, chat
from twistlm.core.errors import PromptError

SEPARATOR = "\u2028"


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- What is read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "one, two\nthree  \n"),
        ("p.txt", "one, two\nthree  "),
        ("p.TXT", "\ufeffone, two\r\nthree  \r\n"),
        ("p.jsonl", '{"prompt": "one, two"}\n{"prompt": "three  "}\n'),
        ("p.jsonl", '"one, two"\n"three  "\n'),
        ("p.csv", 'prompt\n"one, two"\nthree  \n'),
        ("p.csv", '\ufeffother,prompt\r\n1,"one, two"\r\n2,three  \r\n'),
    ],
)
def test_the_same_prompts_from_every_kind_of_file(name: str, content: str, tmp_path: Path) -> None:
    assert Prompts.read(file(tmp_path, name, content)) == Prompts(("one, two", "three  "))


def test_names_weights_and_another_column(tmp_path: Path) -> None:
    rows = '{"q": "a", "name": "first", "weight": 3}\n{"q": "b", "name": null}\n{"q": "c", "name": 7, "weight": 1e-3}\n'
    expected = Prompts(("a", "b", "c"), ("first", "2", "7"), (3.0, 1.0, 0.001))
    assert Prompts.read(file(tmp_path, "p.jsonl", rows), "q") == expected
    table = "weight,name,q\n3,first,a\n,,b\n0.001,7,c\n"
    assert Prompts.read(file(tmp_path, "p.csv", table), "q") == expected
    assert expected.shares == pytest.approx((3 / 4.001, 1 / 4.001, 0.001 / 4.001), rel=1e-15)
    assert [expected.index(name) for name in ("first", "b", "7", "nobody")] == [0, 1, 2, None]
    assert expected.select([2, 0]) == Prompts(("c", "a"), ("7", "first"), (0.001, 3.0))


def test_a_prompt_may_have_lines_of_its_own(tmp_path: Path) -> None:
    text = f"over{SEPARATOR}two\nlines"
    # JSON leaves the separator as it is, and whoever splits at it breaks the line.
    rows = json.dumps({"prompt": text}, ensure_ascii=False) + "\n"
    assert SEPARATOR in rows
    assert Prompts.read(file(tmp_path, "p.jsonl", rows)).entries == (text,)
    assert Prompts.read(file(tmp_path, "p.csv", f'prompt\n"{text}"\n')).entries == (text,)
    assert Prompts.read(file(tmp_path, "p.txt", f"over{SEPARATOR}two\n")).entries == (f"over{SEPARATOR}two",)


def test_chats_from_texts_and_from_lists_of_messages(tmp_path: Path) -> None:
    expected = Prompts((chat("a", system="Be kind."), chat("b", system="Be kind.")))
    texts = file(tmp_path, "p.txt", "a\nb\n")
    assert Prompts.read(texts, as_chat=True, system="Be kind.") == expected
    messages = [[{"role": "user", "content": text}] for text in "ab"]
    for rows in ([{"messages": each} for each in messages], [{"prompt": each} for each in messages], messages):
        content = "".join(json.dumps(row) + "\n" for row in rows)
        assert Prompts.read(file(tmp_path, "p.jsonl", content), system="Be kind.") == expected
        assert Prompts.read(file(tmp_path, "p.jsonl", content), as_chat=True).entries == (chat("a"), chat("b"))
    assert expected.alike("c") == chat("c", system="Be kind.")
    assert Prompts.from_rows([chat("a"), chat("b")], system="Be kind.") == expected


class DataSet:
    """Rows as `datasets.Dataset` gives them: an iterable of mappings that also knows its columns by name."""

    column_names = ("prompt", "weight")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from ({"prompt": "a", "weight": 1}, {"prompt": "b", "weight": 2})

    def to_dict(self) -> dict[str, list[Any]]:
        return {"prompt": ["a", "b"], "weight": [1, 2]}


class Frame:
    """A table as pandas has it: it iterates over its columns, and a cell that is missing is NaN."""

    columns = ("prompt", "name", "weight")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return [{"prompt": "a", "name": math.nan, "weight": 1.0}, {"prompt": "b", "name": "second", "weight": 2.0}]


class Polars:
    """A table as polars has it, of which `to_dict` is something else."""

    columns = ("prompt", "name", "weight")

    def to_dicts(self) -> list[dict[str, Any]]:
        return [{"prompt": "a", "name": None, "weight": 1.0}, {"prompt": "b", "name": "second", "weight": 2.0}]

    def to_dict(self, *, as_series: bool = True) -> dict[str, list[Any]]:
        raise AssertionError


def test_data_sets_and_tables() -> None:
    assert Prompts.from_rows(DataSet()) == Prompts(("a", "b"), weights=(1.0, 2.0))
    for table in (Frame(), Polars()):
        assert Prompts.from_rows(table) == Prompts(("a", "b"), ("1", "second"), (1.0, 2.0))
    assert Prompts.from_rows({"prompt": each} for each in "ab") == Prompts(("a", "b"))
    assert Prompts.of(each for each in "ab") == Prompts(("a", "b"))


def test_weights_that_are_large_or_far_apart() -> None:
    assert Prompts(("a", "b"), weights=(1e308, 1e308)).shares == (0.5, 0.5)
    with pytest.raises(PromptError, match=r"weights 5e-324 and 1e\+308 are too far apart"):
        Prompts(("a", "b"), weights=(5e-324, 1e308))


# --- What is not -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "", "p.txt is empty"),
        ("p.txt", " \n\n", "p.txt is empty"),
        ("p.txt", "\ufeff", "p.txt is empty"),
        ("p.csv", "prompt\n", "has a heading and no rows"),
        ("p.txt", "a\n\nb\n", "p.txt, line 2: a blank line is no prompt"),
        ("p.txt", "a\n \t\nb\n", "p.txt, line 2: a blank line is no prompt"),
        ("p.jsonl", '"a"\n\n"b"\n', "p.jsonl, line 2: a blank line is no prompt"),
        ("p.csv", "prompt\na\n\nb\n", "p.csv, line 3: a blank line is no prompt"),
        ("p.csv", "prompt,name\n,x\n", "p.csv, line 2: a blank line is no prompt"),
        ("p.txt", "a\nb\na\n", "'a' is there twice .*p.txt, line 1 and .*p.txt, line 3.*take one out"),
        ("p.csv", 'prompt\n"two\nlines"\nb\nb\n', "'b' is there twice .*p.csv, line 4 and .*p.csv, line 5"),
        ("p.jsonl", '{"prompt": "a", "name": "n"}\n{"prompt": "b", "name": "n"}', "the name 'n' .*line 1 and .*line 2"),
        ("p.csv", "prompt,name\na,2\nb,\n", "the name '2' is there twice .*line 2 and .*line 3"),
        ("p.csv", "question\na\n", "p.csv, line 2: there is no column 'prompt'; it has question"),
        ("p.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "p.jsonl, line 2: there is no column 'prompt'; it has text"),
        ("p.jsonl", '{"prompt": "a"}\n{}\n', "line 2: there is no column 'prompt'; it has none"),
        ("p.jsonl", '{"prompt": null}\n', "line 1: there is no prompt; give one"),
        ("p.jsonl", '{"prompt": []}\n', "line 1: there is no prompt; give one"),
        ("p.jsonl", '{"prompt": 5}\n', "line 1: a prompt is a text or a list of messages, not int"),
        ("p.jsonl", "7\n", "line 1: a prompt is a text or a list of messages, not int"),
        ("p.jsonl", '"a"\n{"prompt": "b"\n', "p.jsonl, line 2: not JSON"),
        ("p.jsonl", "[" * 100_000, "p.jsonl, line 1: not JSON"),
        ("p.jsonl", "9" * 5000, "p.jsonl, line 1: not JSON"),
        ("p.jsonl", '{"prompt": "a\\ud800"}\n', "line 1: the prompt .* is not text"),
        ("p.jsonl", '{"prompt": "a", "name": "\\ud800"}\n', "is no text"),
        ("p.jsonl", '{"prompt": "a", "name": ["x"]}\n', "line 1: name .* is of type list"),
        ("p.jsonl", '{"prompt": [{"role": "user"}]}\n', "line 1: .* is no message of a chat"),
        ("p.jsonl", '{"prompt": [{"role": "assistant", "content": "a"}]}', "line 1: the last message .* assistant's"),
        ("p.jsonl", '"a"\n[{"role": "user", "content": "b"}]\n', "p.jsonl, line 2: a chat, and .*line 1 is a text"),
        ("p.jsonl", '[{"role": "user", "content": "b"}]\n"a"\n', "p.jsonl, line 2: a text, and .*line 1 is a chat"),
        ("p.csv", "prompt,name\na,b,c\n", "p.csv, line 2: 3 fields under 2 headings"),
        ("p.csv", "prompt,name\na\n", "p.csv, line 2: 1 fields under 2 headings"),
        ("p.csv", 'prompt\n"a\n', "p.csv, line 2: not CSV"),
        ("p.csv", "prompt\n" + "x" * 200_000, "p.csv, line 2: not CSV"),
        ("p.csv", "prompt,weight\na,-1\n", "p.csv, line 2: the prompt has weight -1"),
        ("p.csv", "prompt,weight\na,nan\n", "p.csv, line 2: the prompt has weight nan"),
        ("p.csv", "prompt,weight\na,inf\n", "has weight inf; give a number above 0"),
        ("p.csv", "prompt,weight\na,0\n", "has weight 0"),
        ("p.csv", "prompt,weight\na,many\n", "p.csv, line 2: weight 'many' is no number"),
        ("p.jsonl", '{"prompt": "a", "weight": NaN}', "has weight nan"),
        ("p.jsonl", '{"prompt": "a", "weight": true}', "weight 'True' is no number"),
        ("p.txt", "a\ncaf\u00e9\n".encode("latin-1"), "p.txt, line 2: not UTF-8"),
        ("p.txt", "a".encode("utf-16"), "p.txt, line 1: not UTF-8"),
        ("p.json", "[]", r"prompts are read from .txt, .jsonl, .csv and not from .*p.json"),
        ("p", "a", r"prompts are read from .txt, .jsonl, .csv and not from"),
    ],
)  # fmt: skip
def test_one_line_that_says_where(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    path = file(tmp_path, name, content)
    with pytest.raises(PromptError, match=message) as refused:
        Prompts.read(path)
    assert len(" ".join(str(refused.value).split())) < 1000


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"none.txt' cannot be read \(No such file or directory\)"):
        Prompts.read(tmp_path / "none.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(PromptError, match=r"folder.txt' cannot be read \(Is a directory\); name a file"):
        Prompts.read(tmp_path / "folder.txt")


def test_a_system_message_is_for_chats_without_one(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"line 1: a text, and the system's message is for chats"):
        Prompts.read(file(tmp_path, "p.txt", "a\n"), system="Be kind.")
    with pytest.raises(PromptError, match="row 1: the chat has a system's message of its own"):
        Prompts.from_rows([chat("a", system="Be rude.")], system="Be kind.")


def test_sets_that_cannot_be() -> None:
    with pytest.raises(PromptError, match="there is no prompt; give at least one"):
        Prompts(())
    for given in (5, None, {"prompt": "a"}):
        with pytest.raises(PromptError, match=r"prompts are of type (int|NoneType|dict)"):
            Prompts.of(given)  # type: ignore[arg-type]
    for rows in ("text", {"prompt": ["a"]}, 3):
        with pytest.raises(PromptError, match=r"rows are of type"):
            Prompts.from_rows(rows)
    with pytest.raises(PromptError, match="2 prompts have 1 names and 2 weights"):
        Prompts(("a", "b"), names=("x",))
    with pytest.raises(PromptError, match=r"the name 'x' is there twice \(prompt 1 and prompt 2\)"):
        Prompts(("a", "b"), names=("x", "x"))
    with pytest.raises(PromptError, match="prompt '2' is of another kind than the first"):
        Prompts(("a", chat("b")))
    with pytest.raises(PromptError, match="prompt '2' is of type int"):
        Prompts(("a", 2))  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="prompt '1' is empty"):
        Prompts(("", "b"))
    with pytest.raises(PromptError, match="a chat was given for a target of plain texts"):
        Prompts(("a",)).alike(chat("b"))
