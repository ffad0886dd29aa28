"""Install the wheel in an environment of its own, away from the repository, and do there what somebody does first.

    make dist-test                       # builds dist/ before
    python -m tests.wheel dist --keep    # leaves the environment there, to look at

Nothing of the repository is in reach: another working directory, no PYTHONPATH, and a hub where nobody answers. The
sdist is installed from, too, and has to give the same files.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
# What PyPI takes unless it is asked for more.
MOST_BYTES = 100_000_000
# In this order: each reads what the ones before have written. "smoke" is the demo in seconds.
COMMANDS = (
    ["list"],
    ["demo", "--preset", "smoke", "--out", "runs/demo"],
    ["report", "runs/demo", "--out", "again.html"],
    ["sample", "runs/demo", "--num-samples", "4"],
    ["evaluate", "runs/demo"],
)
WRITTEN = ("runs/demo/twist.safetensors", "runs/demo/certificate.json", "runs/demo/report.html", "again.html")


def contents(wheel: Path) -> dict[str, str]:
    """The SHA-256 of every file in a wheel, without RECORD, which says the same."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith(("/", "/RECORD"))]
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in names}


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names that only one of two wheels has, or that differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def only(dist: Path, pattern: str) -> Path:
    """The one file of that kind."""
    found = list(dist.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{dist} has {len(found)} files {pattern}, not one; `make dist` makes it anew")
    return found[0].resolve()


class Elsewhere:
    """An environment, and a working directory where nothing is."""

    def __init__(self, place: Path) -> None:
        self.bin, self.work = place / "venv" / "bin", place / "work"
        self.work.mkdir()
        venv.create(place / "venv", with_pip=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TWISTLM", "HF_"))}
        # Whatever asks the hub fails at once.
        offline = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(place / "hub"), "TWISTLM_PROGRESS": "0"}
        self.environment = kept | offline | {"TWISTLM_CACHE": str(place / "cache")}

    def run(self, program: str, *arguments: str) -> str:
        """What it printed; ends this program if it failed."""
        begun = time.monotonic()
        ended = subprocess.run(
            [self.bin / program, *arguments], cwd=self.work, env=self.environment, capture_output=True, text=True
        )
        said = f"{program} {' '.join(arguments)}"
        print(f"{time.monotonic() - begun:7.1f} s  {said if len(said) < 100 else said[:97] + '...'}", flush=True)
        if ended.returncode:
            raise SystemExit(f"{said}\nended with code {ended.returncode}:\n{(ended.stdout + ended.stderr)[-3000:]}")
        return ended.stdout


def check(dist: Path, place: Path) -> None:
    """All of it; ends the program where something is not as it should be."""
    wheel, sdist = only(dist, "*.whl"), only(dist, "*.tar.gz")
    for file in (wheel, sdist):
        print(f"{file.stat().st_size / 1e6:7.1f} MB {file.name}")
        if file.stat().st_size > MOST_BYTES:
            raise SystemExit(f"{file.name} is larger than {MOST_BYTES / 1e6:g} MB, which PyPI refuses")
    there = Elsewhere(place)
    there.run("python", "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS), str(wheel))
    there.run("python", "-m", "pip", "check")
    said = json.loads(
        there.run(
            "python",
            "-c",
            "import json, sys, twistlm; from importlib.metadata import version; heavy = 'torch' in sys.modules\n"
            "print(json.dumps([twistlm.__file__, twistlm.__version__, version('twistlm'), heavy]))",
        )
    )
    if not Path(said[0]).is_relative_to(place.resolve()) or said[1] != said[2] or said[3]:
        raise SystemExit(f"another twistlm was imported, or two versions are said, or torch was loaded: {said}")
    for command in COMMANDS:
        there.run("twistlm", *command)
    if missing := [name for name in WRITTEN if not (there.work / name).exists()]:
        raise SystemExit(f"the commands have not written {', '.join(missing)}")
    there.run("python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "again", str(sdist))
    if names := differing(contents(wheel), contents(only(there.work / "again", "*.whl"))):
        raise SystemExit(f"the sdist gives another wheel: {', '.join(names[:10])}")
    size = sum(file.stat().st_size for file in (place / "venv").rglob("*") if file.is_file())
    print(f"{wheel.name} works without the repository ({size / 1e9:.1f} GB installed)")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path, nargs="?", default=Path("dist"), help="folder of one wheel and one sdist")
    parser.add_argument("--keep", action="store_true", help="leave the environment")
    asked = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="twistlm-wheel-"))
    try:
        check(asked.dist, place)
    finally:
        if asked.keep:
            print(f"left in {place}")
        else:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
