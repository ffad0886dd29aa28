"""`twistlm list`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from twistlm.cli.options import Text
from twistlm.core.errors import ConfigError, InstallationError, TwistError

if TYPE_CHECKING:
    from twistlm.core.registry import Entry


def list_(
    kind: Annotated[
        Positional[Text], arg(help="Only parts of this kind, or the code at the end of a warning, such as TW203.")
    ] = "all",
    system: Annotated[
        bool, arg(help="Versions, processors and GPUs, and the models and classifiers that need no download.")
    ] = False,
) -> None:
    """Models, classifiers, potentials, twists, losses, sources, experiments and more to choose from.

    twistlm list TW203 says what a warning means and what to do. twistlm list --system says what is installed and
    what is wrong with it.
    """
    from twistlm.core.advice import explained
    from twistlm.core.registry import HOMES, available
    from twistlm.core.terminal import console

    if system:
        _system()
        return
    if (advice := explained(kind)) is not None:
        for text in (f"{advice.code}: {advice.title}", advice.means, advice.cause, advice.remedy, advice.link or ""):
            console().print(text)
        return
    if kind != "all" and kind not in HOMES:
        raise ConfigError(f"unknown kind {kind!r}; choose a code such as TW203, or one of: all, {', '.join(HOMES)}")
    rows = []
    for each in HOMES if kind == "all" else [kind]:
        for name, entry in available(each).items():
            rows.append((each, name, entry.summary))
            if each == "experiment":
                rows += [("", preset, about) for preset, about in _presets(entry)]
    _print(("kind", "name", "what it is"), rows)


def _print(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.table import Table

    from twistlm.core.terminal import console

    table = Table(show_header=True, box=None, pad_edge=False)
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def _presets(entry: "Entry") -> list[tuple[str, str]]:
    """An experiment's presets, and what each is for and needs."""
    rows = []
    try:
        for name, preset in entry.value().items():
            names = preset.target().downloads
            needs = f"; from the hub: {', '.join(names)}" if names else ""
            rows.append((f"  --preset {name}", preset.about + needs))
    except Exception as error:  # somebody else's may raise anything, and must not hide all others
        rows.append(("", f"cannot be shown: it raised {type(error).__name__} ({error})"))
    return rows


def _system() -> None:
    """Print the environment, conflicts of its packages, and what needs no download.

    Raises:
        InstallationError: torch cannot be imported, or a bundled model is damaged.
    """
    import subprocess
    import sys
    from importlib.metadata import version

    from twistlm.core.terminal import console

    console().print(f"twistlm {version('twistlm')}")
    conflicts = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    console().print((conflicts.stdout or conflicts.stderr).strip())
    try:
        from torch.utils.collect_env import get_pretty_env_info
    except Exception as error:  # whatever a broken build raises
        raise InstallationError(f"torch cannot be imported ({type(error).__name__}: {error}): reinstall it") from None
    console().print(get_pretty_env_info())
    broken = []
    rows = []
    for kind, name, needed, problem in _at_hand():
        rows.append((kind, name, problem or "ready"))
        if needed and problem:
            broken.append(f"{kind} {name}: {problem}")
    _print(("kind", "name", "without a download"), rows)
    if broken:
        raise InstallationError("; ".join(broken))


def _at_hand() -> Iterator[tuple[str, str, bool, str]]:
    """Kind, name, whether twistlm is broken without it, and why it cannot be used ("" if it can)."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    from twistlm.core.plugins import is_own
    from twistlm.core.registry import available
    from twistlm.models.local import is_here
    from twistlm.models.packaged import gguf_folder
    from twistlm.potentials._bilstm import packaged_folder

    # Of packages the files are looked for, and not converted: that takes 20 seconds.
    packaged = {"smollm2": gguf_folder, "jigsaw": packaged_folder}
    entries = [(kind, entry) for kind in ("model", "classifier") for entry in available(kind).values()]
    for kind, entry in (*entries, ("potential", available("potential")["jigsaw"])):
        if not is_own(entry.value.__module__):
            yield kind, entry.name, False, "of a plugin"
            continue
        look = packaged.get(entry.name, entry.value)
        try:
            look()
        except TwistError as error:
            yield kind, entry.name, look is entry.value, str(error)
        else:
            yield kind, entry.name, False, ""
    try:
        cached = scan_cache_dir().repos
    except (CacheNotFound, OSError, ValueError):
        return
    for each in sorted(cached, key=lambda each: each.repo_id):
        if each.repo_type == "model" and is_here(each.repo_id):
            yield "of the hub", each.repo_id, False, ""
