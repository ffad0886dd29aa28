"""The reports of the site are made by the commands of its page, once, and go on where they were interrupted."""

import importlib.util
import shutil
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
assert SPEC is not None
assert SPEC.loader is not None
gallery = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gallery)

SMALL = """
```bash
twistlm train sentiment --preset smoke \\
    --num-draws 256 --out runs/gallery/small
twistlm evaluate runs/gallery/small --budget 16 --num-samples 16 --num-particles 2
twistlm report runs/gallery/small
```
"""


def test_every_report_of_the_page_has_commands_and_a_link() -> None:
    page = (DOCS / "gallery.md").read_text(encoding="utf-8")
    folders = list(gallery.commands(page))
    assert len(folders) == 3
    assert all(folder.parent == Path("runs/gallery") for folder in folders)
    assert all(f'href="reports/{folder.name}.html"' in page for folder in folders)


@pytest.mark.nightly
def test_reports_are_made_once_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWISTLM_PROGRESS", "0")
    (report,) = gallery.make(SMALL, tmp_path / "site")
    assert report == tmp_path / "site" / "small.html"
    assert "</html>" in report.read_text(encoding="utf-8")
    folder = tmp_path / "runs" / "gallery" / "small"
    first = (folder / "report.html").stat().st_mtime_ns
    gallery.make(SMALL, tmp_path / "site")
    assert (folder / "report.html").stat().st_mtime_ns == first
    # As a kill before the report leaves it.
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "report")
    twist = (folder / "twist.safetensors").read_bytes()
    gallery.make(SMALL, tmp_path / "site")
    assert (folder / "twist.safetensors").read_bytes() == twist
    assert (folder / "report.html").exists()
