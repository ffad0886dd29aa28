"""The generated part of docs/results.md: our tables beside the published ones, and the pictures."""

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twistlm.core.errors import ConfigError
from twistlm.core.estimates import Estimate, student
from twistlm.core.storage import as_type, save_text
from twistlm.report.sweep_tables import plain, remarks, title
from twistlm.runs.sweeps.pooled import Pooled

BEGIN, END = "<!-- made by papers/zhao2024/methods.py: begin -->", "<!-- made by papers/zhao2024/methods.py: end -->"

# KL(q‖σ) and KL(σ‖q) in nats, Zhao et al. (2024), tables 2 to 4, 8 and 9: other models, so compare orders.
PUBLISHED: dict[str, dict[str, tuple[float, float]]] = {
    "toxicity": {"ctl": (1.11, 1.07), "rl": (1.52, 1.42), "sixo": (1.71, 1.98), "fudge": (3.24, 2.00),
                 "dpg": (1.09, 1.12), "ppo": (0.98, 1.32)},
    "sentiment": {"ctl": (0.55, 0.47), "rl": (0.94, 0.81), "sixo": (0.73, 0.59), "fudge": (1.01, 0.77),
                  "dpg": (0.72, 0.57), "ppo": (1.04, 0.87)},
    "infilling-15-10": {"ctl": (23.93, 8.87), "rl": (31.35, 14.96), "sixo": (20.34, 7.43), "fudge": (60.93, 19.85),
                        "dpg": (13.27, 4.90), "ppo": (19.37, 14.07)},
    "infilling-2-1": {"ctl": (0.47, 0.25), "rl": (0.42, 0.15), "sixo": (0.47, 0.25), "fudge": (2.62, 0.90),
                      "dpg": (0.16, 0.14), "ppo": (0.52, 1.09)},
    "toxicity-exact": {"ctl": (2.54, 2.68), "rl": (3.23, 3.24), "sixo": (2.37, 2.52), "dpg": (1.51, 1.50)},
}  # fmt: skip


# Sequences drawn, at which the curves of a sweep are read for a table: a quarter of the main tables', theirs, four
# times, and on as far as a sweep goes that goes so far.
SEQUENCES = (1600, 6400, 25_600, 102_400, 204_800)
FEWEST = 3

# What exact_*.py write, by the title of its section.
EXACT = {
    "Infilling of two tokens before one: estimates beside exact values": "exact_infilling.json",
    "A tabular model: estimates beside exact values": "exact_tabular.json",
}


def write(
    sweeps: Mapping[str, Pooled], path: Path, exact: Mapping[str, Mapping[str, Any]], order: Sequence[str] = ()
) -> None:
    """Replace what is between the two marks in the page at `path`; sections of other sweeps stay as they are.

    Args:
        sweeps: by name.
        path: the page.
        exact: what exact_*.py found, by the title of its section.
        order: of the sections, by name or title.

    Raises:
        ConfigError: the page has no such marks.
    """
    page = path.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        raise ConfigError(f"{path} has lost the lines {BEGIN!r} and {END!r}; put them back")
    before, _, rest = page.partition(BEGIN)
    there, _, after = rest.partition(END)
    # The first part stands before any section.
    _, *parts = re.split(r"<!-- section: (.*) -->\n", there)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    sections |= {name: section(name, pooled) for name, pooled in sweeps.items()}
    sections |= {title: beside_exact(title, found["runs"]) for title, found in exact.items()}
    names = sorted(sections, key=lambda name: order.index(name) if name in order else len(order))
    texts = [f"<!-- section: {name} -->\n\n{sections[name].strip()}\n" for name in names]
    save_text(path, "\n".join([f"{before}{BEGIN}\n", *texts, f"{END}{after}"]))


def section(name: str, pooled: Pooled) -> str:
    """A sweep: remarks, the table with the published figures, the order of the methods, and pictures."""
    published = PUBLISHED.get(name, {})
    lines = [
        "| method | KL(q‖σ) | KL(σ‖q) | published | E_q[log φ] | KL(q‖p₀) | learning rate | updates, s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in pooled.rows:
        rate = pooled.asked.settings[row.method]["training"]["learning_rate"]
        known = " / ".join(f"{kl:.2f}" for kl in published[row.method]) if row.method in published else "—"
        cells = [row.method, plain(row.kl_q_target, 2), plain(row.kl_target_q, 2), known, plain(row.log_phi, 2),
                 plain(row.kl_q_prior, 2), f"{rate:g}", f"{row.seconds.value:.0f}"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    text = [f"### {title(pooled)}", " ".join(remarks(pooled)), "\n".join(lines), *_orders(pooled, published)]
    text += _by_sequences(pooled) if pooled.has_curves else []
    kinds = ("divergences", "curves") if pooled.has_curves else ("divergences",)
    text += [picture(name, title(pooled), kind) for kind in kinds]
    return "\n\n".join(text) + "\n"


def picture(name: str, title: str, kind: str) -> str:
    """What lets the site draw a picture of a sweep: a function of docs/figures/results.py."""
    options = f"   :alt: {title}: {kind}\n   :filename-prefix: results-{name}-{kind}"
    code = f'   from figures.results import {kind}\n\n   {kind}("{name}")'
    return f"```{{eval-rst}}\n.. plot::\n{options}\n\n{code}\n```"


def curves(pooled: Pooled) -> dict[str, dict[str, list[list[float | None]]]]:
    """Both divergences over updates by method: the update, value, low and high of every point."""
    kinds = {"kl_q_target": pooled.kl_q_target, "kl_target_q": pooled.kl_target_q}
    return {
        method: {
            name: [[update, kl.value, kl.low, kl.high] for update, kl in pooled.curve(method, of)]
            for name, of in kinds.items()
        }
        for method in pooled.methods
    }


def _by_sequences(pooled: Pooled) -> list[str]:
    """Both divergences of each method once it had drawn so many sequences, of sweeps that drew a few of them."""
    training = {method: pooled.asked.settings[method]["training"] for method in pooled.methods}
    most = max(each["num_particles"] * each["num_updates"] for each in training.values())
    counts = [count for count in SEQUENCES if count <= most]
    if len(counts) < FEWEST:
        return []
    lines = [
        "| method | " + " | ".join(f"{count:,}" for count in counts) + " |",
        "|---" + "|--:" * len(counts) + "|",
    ]
    for method, found in curves(pooled).items():
        both = [{update: value for update, value, *_ in series} for series in found.values()]
        cells = []
        for count in counts:
            update, rest = divmod(count, training[method]["num_particles"])
            values = [None if rest else series.get(update) for series in both]
            cells.append(" / ".join(f"{value:.2f}" for value in values if value is not None) or "—")
        lines.append("| " + " | ".join([method, *cells]) + " |")
    remark = (
        "KL(q‖σ) / KL(σ‖q) by sequences drawn, means over seeds of the twist as it stood then (the table above has "
        "what held-out samples found best of all):"
    )
    return [remark, "\n".join(lines)]


def beside_exact(heading: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Means over seeds of exact and estimated divergences, and how many intervals hold the exact value."""
    lines = [
        "| method | KL(q‖σ) exact | estimated | KL(σ‖q) exact | estimated | intervals that hold it |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    names = ("kl_q_target", "kl_target_q")
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run for run in runs if run["method"] == method]
        cells = []
        for name in names:
            exact = student([run["exact"][name] for run in mine])
            cells += [plain(exact, 3), plain(student([run["estimate"][name]["value"] for run in mine]), 3)]
        lines.append("| " + " | ".join([method, *cells, _held(mine, names)]) + " |")
    log_Z = statistics.mean(run["exact"]["log_Z"] for run in runs)
    remark = (
        f"Exact log Z = {log_Z:.4f}; {_held(runs, ('log_Z',))} of the certificates' intervals of log Z hold it, and "
        f"{_held(runs, names)} of those of the divergences. Mean ± 95 % over seeds."
    )
    return "\n\n".join([f"### {heading}", remark, "\n".join(lines)]) + "\n"


def _held(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    pairs = [(as_type(Estimate, run["estimate"][name], name), run["exact"][name]) for run in runs for name in names]
    held = [estimate.low <= exact <= estimate.high for estimate, exact in pairs]
    return f"{sum(held)} of {len(held)}"


def _orders(pooled: Pooled, published: Mapping[str, tuple[float, float]]) -> list[str]:
    """Both orders by KL(σ‖q), best first, over the methods that both have."""
    ours = {row.method: row.kl_target_q.value for row in pooled.rows if row.kl_target_q is not None}
    both = [method for method in ours if method in published]
    if len(both) < 2:
        return []
    here = sorted(both, key=lambda method: ours[method])
    there = sorted(both, key=lambda method: published[method][1])
    return [f"Order by KL(σ‖q), best first: here {', '.join(here)}; published {', '.join(there)}."]
