"""The site: MyST pages and docstrings by Sphinx, in pydata's theme; `make docs` builds it, and any warning is an error.

Material for MkDocs, which comes to mind first, had its last fixes in November 2026, MkDocs itself is not maintained and
the successor of both is at 0.1. Sphinx has been kept for eighteen years; numpy, scipy and pandas use this theme.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import twistlm
from twistlm.cli import COMMANDS
from twistlm.core import advice

HERE = Path(__file__).parent

project = "twistlm"
author = "The twistlm authors"
project_copyright = f"2026, {author}"
version = release = twistlm.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinxcontrib.mermaid",
    "sphinxcontrib.programoutput",
    "matplotlib.sphinxext.plot_directive",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_llms_txt",
]
# Stubs of modules take the first.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_block", "attrs_inline"]
myst_fence_as_directive = ["mermaid"]
# Headings down to the third level can be linked to, as on GitHub.
myst_heading_anchors = 3
# Notebooks run in the tests anyway; publishing runs them once more, for their outputs.
nb_execution_mode = os.environ.get("TWISTLM_DOCS_NOTEBOOKS", "off")
nb_execution_timeout = 900
nb_execution_raise_on_error = True

# A single backtick in a docstring is code, as everywhere in this project.
default_role = "code"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
autosummary_generate = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Names that several classes share are meant as words.
suppress_warnings = ["ref.python"]

# Figures are drawn while the site is built, from numbers that a named command recorded.
plot_html_show_source_link = False
plot_html_show_formats = False
plot_formats = ["svg"]
# Set anew before each of them; a page is as wide as eight inches of this.
plot_rcparams = {"font.size": 9}
plot_working_directory = str(HERE)
# Those of measurements are drawn by the scripts that measure.
sys.path.append(str(HERE.parent))

html_theme = "pydata_sphinx_theme"
html_title = "twistlm"
html_show_sourcelink = False
html_static_path: list[str] = []
# Reports of real runs: minutes of two cores, where the site is published.
GALLERY = os.environ.get("TWISTLM_DOCS_GALLERY") == "1"
if GALLERY:
    subprocess.run([sys.executable, str(HERE / "gallery.py")], cwd=HERE.parent, check=True)
    html_extra_path = [str(HERE / "_build" / "gallery")]
html_theme_options: dict[str, Any] = {"show_toc_level": 2, "secondary_sidebar_items": ["page-toc"]}
# Where the site is published, each version in a folder of its own: set by whoever publishes it.
if site := os.environ.get("TWISTLM_DOCS_URL", "").rstrip("/"):
    html_baseurl = f"{site}/{version}/"
    html_theme_options["switcher"] = {"json_url": f"{site}/versions.json", "version_match": version}
    html_theme_options["navbar_end"] = ["version-switcher", "theme-switcher"]

llms_txt_summary = "Probabilistic inference in language models: twisted SMC, learned twists, certified bounds."


COMMAND = """
## {name}

```{{program-output}} {python} -m twistlm {name} --help
```
"""


def generated(app: Any) -> None:
    """What stands elsewhere: notebooks beside the examples; commands, options and codes of warnings in the code."""
    notebooks, reference = HERE / "notebooks", HERE / "reference" / "generated"
    for folder in (notebooks, reference):
        folder.mkdir(exist_ok=True)
    for name in (HERE.parent / "examples").glob("*.ipynb"):
        shutil.copy(name, notebooks / name.name)
    commands = "".join(COMMAND.format(name=name, python=sys.executable) for name in COMMANDS)
    write(reference / "commands.md", f"# The command line\n{commands}")
    write(HERE / "when-it-goes-wrong.md", advice.page())


def write(page: Path, text: str) -> None:
    """Only what has changed is read again."""
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    # Help is as wide as a page, and without colours.
    os.environ.update(COLUMNS="100", NO_COLOR="1")
    if GALLERY:
        app.tags.add("gallery")
    app.connect("builder-inited", generated, priority=1)
