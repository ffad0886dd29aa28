"""The tables: on the terminal, and between the markers of docs/benchmarks.md.

`<!-- times -->` and `<!-- end times -->` enclose what `tables` makes under that name; everything else on the page is
written by hand.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.suite.machine import MB
from benchmarks.suite.options import DTYPES, ROOT
from benchmarks.suite.record import Record, Row

# Tables of `benchmarks/peers/compare.py`, by marker: everything that samples posteriors, hard constraints, and engines
# that sample p₀.
PEERS = {
    "peers": ROOT / "benchmarks" / "peers" / "results.md",
    "constraints": ROOT / "benchmarks" / "peers" / "constraints.md",
    "engines": ROOT / "benchmarks" / "peers" / "engines.md",
}
MODELS = {
    "gpt2": "GPT-2 shape",
    "smollm2": "SmolLM2",
    "small": "GPT-2 shape, 2 × 256",
    "stories": "stories",
    "chats": "SmolLM2",
}
TWISTS = {"mlp": "MLP head", "tied": "tied head", "low_rank": "low-rank head", "backbone": "separate transformer"}
VERBS = {"smc": "SMC", "never": "SMC without resampling"}
KINDS = {
    "times": ("time",),
    "scaling": ("scaling",),
    "methods": ("update",),
    "memory": ("memory", "growth"),
}
# Columns of the terminal's tables where there is no terminal.
WIDTH = 150
NOTHING = "Nothing measured yet: `make bench`."


def title(row: Row) -> str:
    """What a row measures, in words."""
    batch = f"{row.particles:,} × {row.steps:,}"
    if row.task == "resampling":
        return f"resampling at every step ÷ never, {batch}"
    if row.task.startswith("growth_"):
        lengths = row.name.removeprefix(f"{row.task}_").replace("_over_", " ÷ ")
        return f"time per token, {describe(row.task.removeprefix('growth_'))}, {lengths} tokens"
    if row.kind == "growth":
        return f"growth from update 50 to {row.name.split('_')[-2]}, {describe(row.task)}, {batch}"
    return f"{describe(row.task)}, {batch}"


def describe(task: str) -> str:
    """A task's name in words."""
    plain = task.removesuffix("_no_attention")
    kind, _, made_of = plain.partition("_")
    twist, _, optimiser = made_of.partition(":")
    words = {
        "generate": "`generate`",
        "base": "base sampling",
        "certificate": "certificate, 4 runs each of IWAE and SMC",
    }
    words |= {
        "generate_chats": "`generate`, 64 padded chats",
        "chats_mlp": "SMC, MLP head, 64 chats",
        "generate_system": "`generate`, 64 padded chats with a system prompt of 600 tokens",
        "system_mlp": "SMC, MLP head, 64 chats with a system prompt of 600 tokens",
        "different": "base sampling, 64 prompts of 10 to 70 tokens ÷ of 40 tokens",
    }
    text = words.get(plain) or f"{VERBS.get(kind, f'{kind.upper()} update')}, {TWISTS[twist]}"
    text = f"{text}, {optimiser.capitalize()}" if optimiser else text
    return text if plain == task else f"{text}, apart from attention"


def tables(record: Record | None) -> dict[str, str]:
    """Markdown by marker."""
    if record is None:
        return dict.fromkeys((*KINDS, "machine", "not met"), NOTHING)
    rows = record.with_peaks()
    made = {name: _markdown([row for row in rows if row.kind in kinds]) for name, kinds in KINDS.items()}
    return {**made, "machine": _machine(record), "not met": _not_met(rows)}


def show(record: Record) -> None:
    """Everything on the terminal; figures above their limits in red."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for name, kinds in KINDS.items():
        rows = [row for row in record.with_peaks() if row.kind in kinds]
        if not rows:
            continue
        heading, *lines = _cells(rows)
        table = Table(title=name, title_justify="left")
        for at, text in enumerate(heading):
            table.add_column(text, justify="left" if at < 2 else "right")
        for line in lines:
            table.add_row(*(f"[red]{cell.strip('*')}[/red]" if cell.startswith("**") else cell for cell in line))
        console.print(table)


def write(page: Path, record: Record | None) -> None:
    """Put the tables into the page, and the peers' if there are any."""
    text = page.read_text(encoding="utf-8")
    for name, content in tables(record).items():
        text = replaced(text, name, content)
    for name, place in PEERS.items():
        if place.exists():
            # Without its title, and one level down.
            _, _, peers = place.read_text(encoding="utf-8").partition("\n")
            text = replaced(text, name, peers.strip().replace("\n## ", "\n### "))
    page.write_text(text, encoding="utf-8")


def replaced(text: str, name: str, content: str) -> str:
    """`text` with `content` between the markers `name`.

    Raises:
        ValueError: the markers are not there.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n?<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page has lost its markers <!-- {name} --> and <!-- end {name} -->")
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2].lstrip()}", text)


def between(text: str, name: str) -> str:
    """What the page has between the markers `name`."""
    return text.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- end {name} -->")[0]


def _cells(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """A heading, and one line for each task and model with both precisions beside each other."""
    kind = rows[0].kind
    # Nobody counted in tables that are older than the column.
    limit = ["× GEMM"] if any(row.limit_s for row in rows) else []
    columns = ["s", *limit] if kind in ("time", "scaling", "update") else ["÷ `generate`"]
    columns += ["MB"] if kind == "time" else []
    ess = ["ESS"] if kind == "time" else []
    yield ("", "model", *(name for dtype in DTYPES for name in (f"{dtype} (limit)", *columns)), *ess)
    lines: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        lines.setdefault((row.name, row.model), {})[row.dtype] = row
    for (_, model), found in lines.items():
        line = [title(next(iter(found.values()))), MODELS[model]]
        for dtype in DTYPES:
            line += _figures(found[dtype], columns) if dtype in found else [""] * (1 + len(columns))
        if ess:
            values = [row.ess for row in found.values() if row.ess is not None]
            line.append(f"{sum(values) / len(values):.0%}" if values else "")
        yield tuple(line)


def _figures(row: Row, columns: Sequence[str]) -> list[str]:
    """What is judged with its limit, bold if it is above it; then what the columns name."""
    texts = {
        "s": _number(row.median_s, 2),
        "× GEMM": _number(row.times_limit, 1),
        "MB": _number(row.peak_mb, 0),
        "÷ `generate`": _number(row.ratio, 2),
    }
    digits = _digits(row)
    judged = _number(row.measured, digits)
    if row.limit is not None:
        judged = f"{judged} (≤ {_number(row.limit, digits)})"
    return [judged if row.passed else f"**{judged}**", *(texts[name] for name in columns)]


def _digits(row: Row) -> int:
    return 0 if row.kind == "memory" else 1 if row.kind == "growth" else 2


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _markdown(rows: Sequence[Row]) -> str:
    if not rows:
        return NOTHING
    heading, *lines = _cells(rows)
    rule = ("---", "---", *["--:"] * (len(heading) - 2))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heading, rule, *lines))


def _machine(record: Record) -> str:
    alike: dict[str, list[str]] = {}
    for model in record.machines:
        alike.setdefault(_described(record, model), []).append(MODELS[model])
    lines = [f"{', '.join(models)}: {text}" for text, models in alike.items()]
    return "\n\n".join([*lines, f"1 MB = {MB:,.0f} bytes."])


def _described(record: Record, model: str) -> str:
    found = record.machines[model]
    machines = [load for case, load in record.load.items() if record.machines.get(case.split()[0]) == found]
    loads = [load["before"][0] for load in machines]
    parts = [
        f"{found['cpu']}, {found['cores']} cores, {found['threads']} threads, {found['memory_gb']:.0f} GB",
        f"{found['system']}; Python {found['python']}, torch {found['torch']}, transformers {found['transformers']}",
    ]
    if found["omp_wait_policy"]:
        parts.append(f"OMP_WAIT_POLICY={found['omp_wait_policy']}")
    if loads:
        parts.append(f"load average before each case {min(loads):.1f}–{max(loads):.1f}")
    if record.quick:
        parts.append("**a quick run on tiny models: no result**")
    return "; ".join(parts) + "."


def _not_met(rows: Sequence[Row]) -> str:
    judged = [row for row in rows if row.limit is not None]
    failed = [row for row in judged if not row.passed]
    if not judged:
        return NOTHING
    if not failed:
        return f"All {len(judged)} rows with a limit are met."
    lines = [f"{len(judged) - len(failed)} of {len(judged)} rows with a limit are met. These are not:", ""]
    for row in failed:
        digits = _digits(row)
        figures = f"{_number(row.measured, digits)}, limit {_number(row.limit, digits)}"
        lines.append(f"- `{row.name}` {row.model} {row.dtype} ({row.kind}): {figures}")
    return "\n".join(lines)
