"""The house is what the page says it is: rooms and floors, and no file that is not there."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "twistlm"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def floors() -> list[set[str]]:
    """Rooms by the import contract, the lowest floor first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(each["layers"] for each in contracts if each.get("containers") == ["twistlm"])
    return [{name.strip() for name in layer.split("|")} for layer in reversed(layers)]


def test_few_rooms_on_few_floors() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    rooms |= {path.stem for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
    assert rooms == set.union(*floors())
    assert len(rooms) <= 15
    assert len(floors()) <= 10


def test_the_table_and_the_picture_are_the_contract() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", PAGE, re.MULTILINE)
    said: dict[int, set[str]] = {}
    for floor, names in rows:
        said.setdefault(int(floor), set()).update(re.findall(r"`(\w+)`", names))
    assert [said[floor] for floor in sorted(said)] == floors()
    arrows = re.findall(r"^    (\w+) --> (\w+)", PAGE, re.MULTILINE)
    number = {room: floor for floor, rooms in enumerate(floors()) for room in rooms} | {"main": len(floors()) - 1}
    assert all(number[below] < number[above] for below, above in arrows)
    assert {room for pair in arrows for room in pair} == (set(number) - {"__main__"})


def test_the_page_is_short_and_names_what_is_there() -> None:
    assert len(PAGE.split()) <= 2500
    for room, text in re.findall(r"^\| \d+ \| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE):
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", text):
            assert (PACKAGE / room / name).exists(), f"{room}/{name}"
    for name in re.findall(r"`([a-z]+/[\w/]+\.(?:py|toml))`", PAGE):
        assert (PACKAGE / name).exists(), name


def test_no_merge_is_left_half_done() -> None:
    markers = tuple(sign * 7 for sign in "<>")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py")]
    assert len(pages) > 200
    for page in pages:
        assert not any(line.startswith(markers) for line in page.read_text().splitlines()), page
