"""What contributors and releases are told: the first contribution works, commands and pages exist, versions agree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

import twistlm

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FORMS = [*(ROOT / ".github").glob("*.md"), *(ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")]
WORKFLOWS = list((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_first_contribution_keeps_the_laws_and_is_listed(tmp_path: Path) -> None:
    (written,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert '@loss("dv"' in written
    (tmp_path / "dv.py").write_text(written, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    laws = "import dv; from twistlm.testing import check_loss; check_loss('dv')"
    for command in (["-c", laws], ["-m", "twistlm", "list", "--plugin", "dv.py"]):
        ended = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
    assert re.search(r"^loss +dv +log E_p₀\[ψ_t\] − E_σ\[log ψ_t\]", ended.stdout, re.MULTILINE), ended.stdout


def test_every_target_of_make_that_is_named_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "releasing.md", ROOT / ".ci" / "run", *FORMS, *WORKFLOWS]
    named = {name for page in pages for name in re.findall(r"\bmake ([a-z-]+)(?=[ `\n.:,;])", page.read_text())}
    assert {"setup", "test", "lint", "docs", "dist", "dist-test"} <= named
    assert named <= targets


def test_every_page_that_a_form_names_is_there() -> None:
    named = {name for form in FORMS for name in re.findall(r"[\w/]+\.md\b", form.read_text(encoding="utf-8"))}
    assert len(named) > 3
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_versions_agree() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    headings = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited["version"] == headings[0] == twistlm.__version__
