"""Codes of warnings: each is explained, each that is explained is given, and the page is the table."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.invocations import options_of
from twistlm.cli import COMMANDS, main
from twistlm.core import advice
from twistlm.core.advice import CODE, Advice, coded, explained, page, parted, site, table

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "twistlm"
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
CODES = [code for code in table() if CODE.fullmatch(code)]


def nodes(kind: type[ast.AST]) -> Iterator[tuple[Path, ast.AST]]:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield path, node


def calls(name: str) -> list[tuple[Path, ast.Call]]:
    """Calls of a function or method of that name, by the file they are in."""
    return [(path, node) for path, node in nodes(ast.Call) if isinstance(node, ast.Call) and _name(node.func) == name]


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_every_code_is_explained_and_every_explanation_is_of_a_code_that_is_given() -> None:
    used = {
        node.value
        for _, node in nodes(ast.Constant)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value)
    }
    assert used == set(CODES)
    assert sorted(CODES) == CODES, "in order"


def test_no_warning_is_without_a_code() -> None:
    given = [each for name in ("warning", "exception") for each in calls(name)]
    assert len(given) > 15
    for path, call in given:
        first = call.args[0]
        assert isinstance(first, ast.Call), f"{path} at line {call.lineno}"
        assert _name(first.func) == "coded", f"{path} at line {call.lineno}"
    found = calls("Finding")
    assert len(found) >= 4
    assert all(len(call.args) == 3 for _, call in found)


def test_every_class_of_errors_is_explained() -> None:
    bases = {
        node.name: {_name(base) for base in node.bases}
        for _, node in nodes(ast.ClassDef)
        if isinstance(node, ast.ClassDef)
    }
    known = {"TwistError"}
    while more := {name for name, of in bases.items() if of & known} - known:
        known |= more
    assert known == set(table()) - set(CODES)


@pytest.mark.parametrize("each", table().values(), ids=lambda each: each.code)
def test_an_entry_is_whole_and_names_only_what_there_is(each: Advice) -> None:
    assert not each.title.endswith(".")
    text = f"{each.means} {each.cause} {each.remedy}"
    for part in (each.means, each.cause, each.remedy):
        assert part.endswith("."), part
        assert len(part) < 500
    flags = {option.flag for command in COMMANDS for option in options_of(command)}
    assert set(re.findall(r"--[a-z][a-z-]*", text)) <= flags
    assert set(re.findall(r"`twistlm ([a-z]+)", text)) <= set(COMMANDS)
    assert set(re.findall(r"TW\d{3}", text)) <= set(CODES) - {each.code}
    assert all((ROOT / name).exists() for name in re.findall(r"docs/[\w-]+\.md", text))


def test_the_page_is_the_table_and_its_links_lead_somewhere() -> None:
    written = (ROOT / "docs" / "when-it-goes-wrong.md").read_text(encoding="utf-8")
    assert written == page(), "python -m twistlm.core.advice > docs/when-it-goes-wrong.md"
    headings = [heading.lower() for heading in re.findall(r"^### (\w+)$", written, re.MULTILINE)]
    assert headings == [code.lower() for code in table()]
    assert set(re.findall(r"\(#([^)]+)\)", written)) == set(headings)


def test_a_message_ends_with_its_code_and_is_found_by_it() -> None:
    message = coded("TW203", "50 % of %s\nand [TW101] is no ending")
    assert message.endswith("ending [TW203]")
    text, found = parted(message)
    assert (text, found) == ("50 % of %s\nand [TW101] is no ending", table()["TW203"])
    for other in ("nothing", "of a later version [TW699]", "[TW203] first", "one [PromptError]"):
        assert parted(other) == (other, None)
    with pytest.raises(KeyError):
        coded("TW699", "a code that nobody has explained")


def test_the_site_is_what_the_package_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "twistlm-9.dist-info"
    installed.mkdir()
    head = "Metadata-Version: 2.1\nName: twistlm\nVersion: 9\n"
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        for urls, link in (
            ("Project-URL: Source, https://other.example\n", None),
            (
                "Project-URL: Source, https://other.example\nProject-URL: Documentation, https://docs.example/en/\n",
                "https://docs.example/en/when-it-goes-wrong.html#tw101",
            ),
        ):
            (installed / "METADATA").write_text(head + urls)
            site.cache_clear()
            assert table()["TW101"].link == link
    finally:
        site.cache_clear()


@pytest.mark.parametrize("written", ["TW203", "tw203", "[TW203]", "DeadParticlesError"])
def test_list_prints_an_entry(
    written: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "site", lambda: "https://docs.example")
    assert main(["list", written]) == 0
    said, entry = " ".join(capsys.readouterr().out.split()), explained(written)
    assert entry is not None
    for part in (f"{entry.code}: {entry.title}", entry.means, entry.cause, entry.remedy, entry.link):
        assert part
        assert part in said
