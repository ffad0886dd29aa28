"""Pictures of results.md, which calls this, from its own tables and from what is recorded.

The tables are what `make results` and `make ablations` wrote into the page; curves over updates are of sweeps that they
have recorded (recorded/results-curves.json).
"""

import re
from itertools import takewhile
from pathlib import Path
from typing import Any

from figures.explain_common import bars, look, plt, read
from matplotlib.lines import Line2D

PAGE = Path("results.md")
BOTH = {"kl_q_target": "KL(q‖σ)", "kl_target_q": "KL(σ‖q)"}


def table(section: str) -> dict[str, dict[str, list[float]]]:
    """Value, low and high of every number with a ± of every method of a sweep, by the heading of its column."""
    part = PAGE.read_text(encoding="utf-8").split(f"<!-- section: {section} -->")[1].split("<!-- section")[0]
    # The first table of the section.
    rows = takewhile(lambda line: line.startswith("|"), part[part.index("\n|") + 1 :].splitlines())
    head, _, *lines = [line.strip("| ").split(" | ") for line in rows]
    found = {}
    for method, *cells in lines:
        pairs = {name: re.fullmatch(r"(-?[\d.]+) ± ([\d.]+)", cell) for name, cell in zip(head[1:], cells, strict=True)}
        numbers = {name: (float(pair[1]), float(pair[2])) for name, pair in pairs.items() if pair}
        found[method] = {name: [value, value - error, value + error] for name, (value, error) in numbers.items()}
    assert found, section
    return found


def compared(axes: Any, found: dict[str, dict[str, list[float]]], title: str) -> None:
    """Both divergences of every method of a table, the nearest at the top."""
    order = sorted(found, key=lambda name: -sum(found[name][label][0] for label in BOTH.values()))
    for k, label in enumerate(BOTH.values()):
        x = [found[name][label] for name in order]
        error = [high - value for value, _, high in x]
        style = {**look(k), "linestyle": ""}
        y = [at + 0.16 * (2 * k - 1) for at in range(len(order))]
        axes.errorbar([each[0] for each in x], y, xerr=error, capsize=2, elinewidth=0.8, label=label, **style)
    axes.set_yticks(range(len(order)), order)
    axes.set(xlabel="nats", title=title, xlim=(0, None))


def divergences(section: str) -> None:
    """The same as a picture of its own."""
    found = table(section)
    figure, axes = plt.subplots(figsize=(7, 1.4 + 0.34 * len(found)), layout="constrained")
    compared(axes, found, section)
    axes.grid(axis="x", color="0.92")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)


def curves(section: str) -> None:
    """Both divergences over sequences, of sweeps that are recorded: mean and interval of each method."""
    found = read("results-curves")[section]
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.6), layout="constrained", sharey=True)
    for axes, (name, label) in zip(panels, BOTH.items(), strict=True):
        for k, (method, series) in enumerate(found.items()):
            points = series[name]
            style = {**look(k), "markersize": 4}
            at = [update * (1 + 0.01 * k) for update, *_ in points]
            bars(axes, at, [rest for _, *rest in points], method, k, **style)
        # Certificates come after 0, 1, 2, 4, 8, … updates.
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set(xlabel="updates", ylabel="nats", title=f"{section}: {label}", ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False)


def frontier(sections: dict[float, str]) -> None:
    """E_q[log φ]/β against KL(q‖p₀): what is gained for how far from the prior, a line per method in order of β."""
    _, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    found: dict[float, dict[str, Any]] = {beta: table(section) for beta, section in sections.items()}
    methods = list(dict.fromkeys(method for rows in found.values() for method in rows))
    sizes = {beta: 5 + 2.5 * k for k, beta in enumerate(found)}
    for k, method in enumerate(methods):
        at = [(rows[method]["KL(q‖p₀)"][0], rows[method]["E_q[log φ]"][0] / beta) for beta, rows in found.items()]
        axes.plot([x for x, _ in at], [y for _, y in at], **{**look(k), "marker": ""})
        for beta, (x, y) in zip(found, at, strict=True):
            axes.plot(x, y, **{**look(k), "markersize": sizes[beta]})
    axes.set(xlabel="KL(q‖p₀) (nats)", ylabel="E_q[log φ] / β (nats)")
    marks = [Line2D([], [], label=method, **look(k)) for k, method in enumerate(methods)]
    plain: dict[str, Any] = {"color": "0.4", "marker": "o", "linestyle": ""}
    marks += [Line2D([], [], label=f"β = {beta:g}", markersize=size, **plain) for beta, size in sizes.items()]
    axes.legend(handles=marks, frameon=False)
