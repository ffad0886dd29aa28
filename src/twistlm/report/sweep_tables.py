"""Tables of sweeps: in the terminal, as Markdown, CSV and LaTeX. One block per sweep, a row per method."""

import csv
import io
import math
from collections.abc import Callable, Mapping

from rich.console import Group
from rich.table import Table
from rich.text import Text

from twistlm.certificates.bounds import main_bounds
from twistlm.core.estimates import Estimate
from twistlm.core.estimates import plain as number
from twistlm.runs.sweeps.pooled import Pooled, Row

HEADINGS = ("method", "KL(q‖σ)", "KL(σ‖q)", "E_q[log φ]", "KL(q‖p₀)", "seconds", "seeds")
LATEX_HEADINGS = (
    "method",
    r"$\mathrm{KL}(q\,\|\,\sigma)$",
    r"$\mathrm{KL}(\sigma\,\|\,q)$",
    r"$\mathrm{E}_q[\log\phi]$",
    r"$\mathrm{KL}(q\,\|\,p_0)$",
    "seconds",
    "seeds",
)
LATEX = {"±": r"\pm", "∞": r"\infty", "≥": r"\geq", "≤": r"\leq", "−": "-"}
NAMES = ("kl_q_target", "kl_target_q", "log_phi", "kl_q_prior", "seconds")

# What ± contains.
MEANING = (
    "Nats; ± is 95 %, by the farther end, and holds the scatter over seeds (Student's t; of a single seed the error of "
    "its evaluation), and of KLs to σ what all runs share: the error of log Z and, for KL(σ‖q), of the exact samples. "
    "Seconds are those of the updates."
)


def title(pooled: Pooled) -> str:
    """What was swept."""
    asked = pooled.asked
    options = "".join(f", {name} = {value}" for name, value in asked.options.items())
    twist = f", twist {asked.twist}" if asked.twist else ""
    source = f", trained on {asked.source} samples" if asked.source else ""
    return f"{asked.experiment}, preset {asked.preset}{options}{twist}{source}"


def remarks(pooled: Pooled) -> list[str]:
    """What a reader has to know: the log Z that was used, what ± means, what is missing."""
    lines = []
    if pooled.reference is not None:
        reference = pooled.reference.certificate
        bounds = main_bounds(reference.bounds)
        assert bounds.upper is not None
        middle, lower, upper = (number(e.value) for e in (reference.divergences.log_Z, bounds.lower, bounds.upper))
        lines.append(
            f"log Z differs by condition; its mean over {bounds.lower.n} of them is {middle}, the middle of {lower} "
            f"and {upper} ({bounds.method.upper()}, {bounds.num_particles} particles, {pooled.reference.run}); F and G "
            "are of the same conditions."
        )
    elif pooled.log_Z is not None:
        lines.append(f"log Z = {pooled.log_Z}: by the evidence of {len(pooled.results)} runs, weighted by precision.")
        if math.isinf(pooled.log_Z.high):
            lines.append("Nothing limits log Z from above, hence no KL to the target either.")
    if pooled.is_mean and pooled.reference is None:
        lines.append(
            "It is a mean of what differs by condition or prompt, so each run's KLs are those of its own certificate, "
            "paired by it."
        )
    lines.append(MEANING)
    if pooled.num_missing:
        total = pooled.num_missing + len(pooled.results)
        lines.append(f"Unfinished: {pooled.num_missing} of {total} runs are missing; this is what is there.")
    return lines


def terminal(sweeps: Mapping[str, Pooled]) -> Group:
    """For the terminal: sweeps by the names that tell them apart, as everywhere here."""
    return Group(*(_table(heading, pooled) for heading, pooled in _headed(sweeps)))


def _table(heading: str, pooled: Pooled) -> Group:
    table = Table(box=None, pad_edge=False)
    for column in HEADINGS:
        # Text, not markup: E_q[…] would be read as a style.
        table.add_column(Text(column), justify="left" if column == "method" else "right")
    for row in pooled.rows:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    return Group(Text(heading, style="bold"), *map(Text, remarks(pooled)), "", table, "")


def markdown(sweeps: Mapping[str, Pooled]) -> str:
    """A section for each sweep."""
    blocks = []
    for heading, pooled in _headed(sweeps):
        lines = [HEADINGS, ["---", *["---:"] * (len(HEADINGS) - 1)], *(_cells(row) for row in pooled.rows)]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        blocks.append(f"## {heading}\n\n{' '.join(remarks(pooled))}\n\n{table}\n")
    return "\n".join(blocks)


def latex(sweeps: Mapping[str, Pooled]) -> str:
    """A tabular for each sweep; needs the package booktabs."""
    blocks = []
    for heading, pooled in _headed(sweeps):
        comments = "\n".join(f"% {line}" for line in (heading, *remarks(pooled)))
        cells = [_cells(row, _math) for row in pooled.rows]
        rows = "\n".join(" & ".join([_escaped(method), *rest]) + r" \\" for method, *rest in cells)
        blocks.append(
            f"{comments}\n\\begin{{tabular}}{{l{'r' * (len(HEADINGS) - 1)}}}\n\\toprule\n"
            f"{' & '.join(LATEX_HEADINGS)} \\\\\n\\midrule\n{rows}\n\\bottomrule\n\\end{{tabular}}\n"
        )
    return "\n".join(blocks)


def as_csv(sweeps: Mapping[str, Pooled]) -> str:
    """A line per sweep and method with every number in full, and half-widths in columns of their own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    pairs = [column for name in NAMES for column in (name, f"{name}_half_width")]
    writer.writerow(["sweep", "experiment", "preset", "beta", "log_Z", "log_Z_half_width", "method", *pairs, "seeds"])
    for name, pooled in sweeps.items():
        log_Z = ("", "") if pooled.log_Z is None else (pooled.log_Z.value, _half(pooled.log_Z))
        start = [name, pooled.asked.experiment, pooled.asked.preset, pooled.beta, *log_Z]
        for row in pooled.rows:
            estimates: list[Estimate | None] = [getattr(row, each) for each in NAMES]
            # An empty field is a number that is not known.
            numbers = [n for e in estimates for n in (("", "") if e is None else (e.value, _half(e)))]
            writer.writerow([*start, row.method, *numbers, row.num_seeds])
    return text.getvalue()


def _headed(sweeps: Mapping[str, Pooled]) -> list[tuple[str, Pooled]]:
    """Each with its title, and its name where there are others: those of one experiment have one title."""
    return [(title(each) if len(sweeps) == 1 else f"{name}: {title(each)}", each) for name, each in sweeps.items()]


def _escaped(text: str) -> str:
    return text.replace("_", r"\_")


def _half(estimate: Estimate) -> float | str:
    return estimate.reach if math.isfinite(estimate.reach) else ""


def plain(estimate: Estimate | None, digits: int) -> str:
    """A number with its half-width, or with the one end that is known, as text; a dash for what is not known."""
    if estimate is None:
        return "—"
    digits = estimate.digits(digits)
    value = number(estimate.value, digits)
    if estimate.is_exact or not estimate.is_known:
        return value
    if math.isfinite(estimate.reach):
        return f"{value} ± {estimate.reach:.{digits}f}"
    if math.isfinite(estimate.low):
        return f"≥ {number(estimate.low, digits)}"
    return f"≤ {number(estimate.high, digits)}"


def _math(estimate: Estimate | None, digits: int) -> str:
    text = plain(estimate, digits)
    for symbol, command in LATEX.items():
        text = text.replace(symbol, command)
    return "---" if text == "—" else f"${text}$"


def _cells(row: Row, shown: Callable[[Estimate | None, int], str] = plain) -> list[str]:
    estimates = [shown(getattr(row, name), 1 if name == "seconds" else 2) for name in NAMES]
    return [row.method, *estimates, str(row.num_seeds)]
