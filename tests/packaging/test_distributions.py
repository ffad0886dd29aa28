"""What `make dist` would upload: all of src/ and nothing else, the same from the tree and from the sdist.

That the wheel works where the repository is not is tested by `make dist-test`, which takes minutes.
"""

import email
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import twistlm
from tests.wheel import MOST_BYTES, ROOT, contents, differing, only

NAME = f"twistlm-{twistlm.__version__}"


def build(tree: Path, out: Path, *kinds: str) -> Path:
    """`python -m build` with the backend that is installed, so that nothing is downloaded."""
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", str(out), str(tree)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return out


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git has or would take, and what lies about in a tree that is worked in."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert listed.returncode == 0, listed.stderr
    copy = tmp_path_factory.mktemp("tree")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    for name in ("runs/mine/twist.safetensors", "src/twistlm/core/__pycache__/rng.cpython-311.pyc", "build/lib/old.py"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("not to be uploaded")
    return copy


@pytest.fixture(scope="module")
def dist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is made from it."""
    return build(tree, tmp_path_factory.mktemp("dist"))


def test_the_wheel_has_all_of_src_and_nothing_else(tree: Path, dist: Path) -> None:
    source = {str(path.relative_to(tree / "src")) for path in (tree / "src" / "twistlm").rglob("*") if path.is_file()}
    source = {name for name in source if "__pycache__" not in name}
    assert {"twistlm/py.typed", "twistlm/models/bundled/stories/model.safetensors", "twistlm/runs/card.md"} <= source
    described = f"{NAME}.dist-info/"
    found = {name for name in contents(only(dist, "*.whl")) if not name.startswith(described)}
    assert found == source


def test_what_the_wheel_says_of_itself(dist: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(only(dist, "*.whl"), tmp_path, "zip")
    described = tmp_path / f"{NAME}.dist-info"
    said = email.message_from_string((described / "METADATA").read_text(encoding="utf-8"))
    assert (said["Name"], said["Version"], said["License-Expression"]) == (
        "twistlm",
        twistlm.__version__,
        "Apache-2.0 AND MIT",
    )
    assert said["Description-Content-Type"] == "text/markdown"
    assert (described / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "twistlm = twistlm.__main__:main" in (described / "entry_points.txt").read_text()
    needed = said.get_all("Requires-Dist")
    assert len(needed) == len(set(needed))


def test_the_sdist_has_what_building_needs_and_no_more(dist: Path) -> None:
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        names = {Path(member.name).relative_to(NAME) for member in archive.getmembers() if member.isfile()}
    top = {path.parts[0] for path in names}
    assert top == {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "src"}
    assert {path.parts[1] for path in names if path.parts[0] == "src"} == {"twistlm", "twistlm.egg-info"}


def test_the_tree_and_the_sdist_give_the_same_wheel(tree: Path, dist: Path, tmp_path: Path) -> None:
    shutil.rmtree(tree / "build")
    straight = contents(only(build(tree, tmp_path, "--wheel"), "*.whl"))
    assert differing(straight, contents(only(dist, "*.whl"))) == []


def test_both_are_small_enough_for_pypi(dist: Path) -> None:
    assert all(file.stat().st_size < MOST_BYTES for file in dist.iterdir())
