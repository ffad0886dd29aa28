"""Links of the pages that are not part of the site lead to files; those of the site are checked while it is built."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)")
PAGES = [*ROOT.glob("*.md"), *(ROOT / "src").rglob("*.md"), *(ROOT / "recipes").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page: Path) -> None:
    found = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in found if not (page.parent / target).exists()] == []
