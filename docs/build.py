"""Build the API reference into docs/_build, and check that every relative link of the Markdown pages leads to a file.

A warning of pdoc (a module that cannot be imported, a name that leads nowhere) is an error.
"""

import pkgutil
import re
import sys
import warnings
from pathlib import Path

import pdoc

import twistlm

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)")


def build(folder: Path) -> int:
    """Write one page per public module; returns how many there are."""
    for name in twistlm.__all__:
        # pdoc reads attributes without asking for them, and these are loaded at first use.
        setattr(twistlm, name, getattr(twistlm, name))
    # pdoc descends into packages by itself, and from "twistlm" into what its __all__ names.
    found = [module.name for module in pkgutil.iter_modules(twistlm.__path__) if module.name not in twistlm.__all__]
    modules = ["twistlm", *(f"twistlm.{name}" for name in found if not name.startswith("_"))]
    warnings.filterwarnings("error", module=r"pdoc\.")
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*modules, output_directory=folder)
    return len(list(folder.rglob("*.html"))) - 1


def broken_links() -> list[str]:
    """Every relative link that leads nowhere, with its page."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    return [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]


def main() -> int:
    """1 if a link is broken."""
    broken = broken_links()
    print("\n".join(f"broken link in {each}" for each in broken), end="\n" if broken else "")
    print(f"{build(ROOT / 'docs' / '_build')} modules documented: docs/_build/index.html")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
