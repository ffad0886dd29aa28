"""Every block of code on every page runs, or says why it is not run here."""

import re
from pathlib import Path

import pytest

from tests.docs import pages

SITE = [page for page in (pages.ROOT / "docs").rglob("*.md") if not {"_build", "generated"} & set(page.parts)]
PAGES = [pages.ROOT / "README.md", pages.ROOT / "CONTRIBUTING.md", *sorted(SITE)]
RUN = [page for page in PAGES if any(pages.parsed(page))]
# Pages with these words take a minute and more: on a larger model, and of three whole runs.
LARGER, WHOLE = "smollm2", "runs/gallery"
# Half a minute of CPU each, and what they call is tested by day elsewhere.
LONG = {"docs/choose/method.md", "docs/conditions.md", "docs/integrations.md", "docs/start/ten-minutes.md"}
LANGUAGES = {"python", "bash", "text", "toml", "json", "yaml", "bibtex", "html", "mermaid"}


def name(page: Path) -> str:
    return str(page.relative_to(pages.ROOT))


def takes_long(page: Path) -> bool:
    code = "".join(str(example.parsed) for example in pages.parsed(page))
    return name(page) in LONG or LARGER in code or WHOLE in code


@pytest.mark.parametrize("page", [page for page in RUN if not takes_long(page)], ids=name)
def test_code_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pages.run(page, monkeypatch)


@pytest.mark.nightly
@pytest.mark.parametrize("page", [page for page in RUN if takes_long(page)], ids=name)
def test_code_that_takes_long_runs(page: Path, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pages.run(page, monkeypatch)


def test_the_rest_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pages.run(pages.ROOT / "README.md", monkeypatch, without=LARGER)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_says_what_it_is(page: Path) -> None:
    fences = re.findall(r"^ *```+(.*)\n[\s\S]*?^ *```+$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert {each for each in fences if not each.startswith("{")} <= LANGUAGES


@pytest.mark.parametrize("page", RUN, ids=name)
def test_what_is_not_run_says_why(page: Path) -> None:
    skips = re.findall(r".*<!-- skip:.*", page.read_text(encoding="utf-8"))
    assert all(pages.SKIPPED.fullmatch(each) for each in skips)
