"""Reports of real runs, beside the site: what the commands of gallery.md make. Some minutes of two cores, once.

    python docs/gallery.py

A report that is there is kept, a run that was interrupted goes on; docs/conf.py calls this where the site is published.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# What `twistlm report` and `twistlm demo` leave in a folder, and what `twistlm probability` does.
PAGES = ("report.html", "probability.html")


def commands(page: str) -> dict[Path, list[list[str]]]:
    """Arguments of `twistlm` by the folder that the commands of a block make; blocks and commands in their order."""
    found: dict[Path, list[list[str]]] = {}
    for block in re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        lines = [shlex.split(line)[1:] for line in block.replace("\\\n", " ").splitlines()]
        found[Path(lines[0][lines[0].index("--out") + 1])] = lines
    return found


def page_of(folder: Path) -> Path | None:
    """The page in a folder; None as long as it has none."""
    return next((folder / name for name in PAGES if (folder / name).exists()), None)


def make(page: str, site: Path) -> list[Path]:
    """Run what is not done yet, in the current folder, and copy each page to `site`; where they are then.

    Raises:
        CalledProcessError: a command failed; it has said why.
    """
    site.mkdir(parents=True, exist_ok=True)
    made = []
    for folder, lines in commands(page).items():
        begun = folder.exists()
        for number, arguments in enumerate(lines if page_of(folder) is None else ()):
            resumed = [*arguments, "--resume"] if begun and number == 0 else arguments
            print(f"gallery: twistlm {shlex.join(resumed)}", flush=True)
            subprocess.run([sys.executable, "-m", "twistlm", *resumed], check=True)
        found = page_of(folder)
        assert found is not None, f"the commands for {folder} leave no page"
        made.append(site / f"{folder.name}.html")
        shutil.copy(found, made[-1])
    return made


if __name__ == "__main__":
    make((HERE / "gallery.md").read_text(encoding="utf-8"), HERE / "_build" / "gallery" / "reports")
