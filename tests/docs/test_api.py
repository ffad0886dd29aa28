"""What the package offers is on the page of its API, and what pages link to in the code is there."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import twistlm
from twistlm.core.registry import available

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
ROLE = re.compile(r"\{py:(?:func|class|meth|mod|attr|data|obj)\}`(?:[^`<]*<)?~?([\w.]+)>?`")
LINKS = sorted({(str(page.relative_to(DOCS)), name) for page in DOCS.rglob("*.md") if "_build" not in page.parts
                for name in ROLE.findall(page.read_text(encoding="utf-8"))})  # fmt: skip


def documented() -> set[str]:
    """Full names of all that autodoc puts on the page."""
    found, module = set(), ""
    for directive, name in re.findall(r"^\.\. (currentmodule|auto\w+):: ([\w.]+)", PAGE, re.MULTILINE):
        if directive == "currentmodule":
            module = name
        else:
            found.add(name if name.startswith("twistlm.") else f"{module}.{name}")
    return found


def found_at(name: str) -> Any:
    """What a full name means: a module, or something in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


def test_everything_that_the_package_offers_is_there() -> None:
    modules = {
        "potentials": twistlm.potentials.__all__,
        "types": twistlm.types.__all__,
        "losses": ("objective", "loss"),
    }
    names = [f"twistlm.{name}" for name in twistlm.__all__ if name not in modules]
    names += [f"twistlm.{module}.{name}" for module, inside in modules.items() for name in inside]
    assert [name for name in names if name not in documented()] == []


def test_every_potential_and_every_method_is_there() -> None:
    kinds = {entry.value for entry in available("potential").values()}
    assert len(kinds) > 10
    shown = {found_at(name) for name in documented()}
    assert [kind for kind in kinds if kind not in shown] == []
    methods = re.findall(r"^\| `(\w+)` \| \{py:func\}", PAGE, re.MULTILINE)
    assert sorted(methods) == sorted(available("loss"))


def test_nothing_on_the_page_is_missing_in_the_package() -> None:
    for name in documented():
        found_at(name)


@pytest.mark.parametrize(("page", "name"), LINKS)
def test_links_into_the_code_lead_to_something(page: str, name: str) -> None:
    # Sphinx itself leaves a link that leads nowhere as plain text, and says nothing.
    try:
        found_at(name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise AssertionError(f"{page} links to {name}, which is not there: {error}") from error
