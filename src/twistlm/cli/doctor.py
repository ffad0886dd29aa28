"""`twistlm doctor`."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

if TYPE_CHECKING:
    from rich.table import Table

    from twistlm.runs.doctor.examination import Examination
    from twistlm.runs.doctor.speed import Speed


def doctor(
    json: Annotated[bool, arg(help="Print it as JSON, for machines.")] = False,
    speed: Annotated[
        bool, arg(help="Sample from the bundled model for a few seconds, to see how fast it goes.")
    ] = True,
) -> None:
    """Say what is installed, what is at hand, how fast this machine is, and what is wrong.

    Every package is imported in a process of its own, so that a broken one is reported whatever it does. Of optional
    parts that are missing it says what installs them. Problems come last, each with its remedy. The exit code is 0 if
    all is well, and 1 if something that twistlm needs is missing or broken. Nothing is downloaded, and nothing written.
    """
    from json import dumps

    from twistlm.core.errors import InstallationError
    from twistlm.core.terminal import console
    from twistlm.runs.doctor.examination import examine

    found = examine(speed=speed)
    if json:
        print(dumps(found.as_dict(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        for each in _tables(found):
            console().print(each)
            console().print()
    if not found.is_well:
        broken = [each.what for each in found.problems if each.needed]
        raise InstallationError(f"{'; '.join(broken)}: see the remedies above")


def _tables(found: "Examination") -> "Iterator[Table | str]":
    """What is printed, one after the other."""
    installed, machine, torch = found.installed, found.machine, found.torch
    yield _table("Machine", (), [
        ("system", machine.system),
        ("Python", f"{machine.python} ({installed.python} is wanted)" if installed.python else machine.python),
        ("cores", f"{machine.cores:g} of {machine.all_cores}"),
        ("memory", f"{machine.memory_gib:.1f} GiB, {machine.free_gib:.1f} of them free"),
        *((disk.what, f"{disk.path}, {disk.free_gib:.1f} GiB free") for disk in machine.disks),
        *([] if torch is None else [("torch", f"{torch.build} build, {torch.num_threads} threads")]),
        *([] if torch is None else [("GPU", ", ".join(torch.gpus) or "none that torch can use")]),
    ])  # fmt: skip
    rows = [(each.name, each.version or "—", each.wanted, each.problem or "in order") for each in installed.packages]
    yield _table(f"Packages of twistlm {installed.version}", ("package", "version", "wanted", ""), rows)
    extras = []
    for extra in installed.extras:
        missing = [each.name for each in extra.packages if each.problem]
        extras.append(
            (extra.name, f"missing: {', '.join(missing)}" if missing else "complete", extra.remedy if missing else "")
        )
    yield _table("Extras", ("extra", "", "what completes it"), extras)
    hand = [(each.kind, each.name, each.source, each.problem or each.about) for each in found.at_hand]
    yield _table("At hand without a download", ("kind", "name", "from", ""), hand)
    variables = [(each.name, "not set" if each.value is None else each.value, each.about) for each in machine.variables]
    yield _table("Environment", ("variable", "value", "what it does"), variables)
    if found.speed is not None:
        yield _sentences(found.speed)
    problems = [("needed" if each.needed else "", each.what, each.remedy) for each in found.problems]
    yield _table("Problems", ("", "what", "remedy"), problems) if problems else "No problems."


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=bool(headings), box=None, pad_edge=False)
    for heading in headings or [""] * len(rows[0]):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _sentences(speed: "Speed") -> str:
    """How fast, and what that means."""
    seconds, rate, ratio = (f"{each.value:.3g} [{each.low:.3g}, {each.high:.3g}]" for each in speed.estimates.values())
    threads = "1 thread" if speed.num_threads == 1 else f"{speed.num_threads} threads"
    return (
        f"Speed: {speed.num_sequences} × {speed.num_tokens} tokens of {speed.model} take about {seconds} s with "
        f"{threads}, {ratio} times what transformers' generate takes. That is {rate} tokens a second (95 % intervals "
        f"over {speed.seconds.n} rounds)."
    )
