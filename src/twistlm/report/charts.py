"""Charts as data: what they show, apart from how it is drawn (`plots` for paper, `page` for the browser)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from twistlm.certificates.certificate import Certificate
from twistlm.core.estimates import Estimate, difference
from twistlm.core.logmath import log_mean_exp
from twistlm.runs.folder import History
from twistlm.sampling.diagnostics import Diagnostics, Genealogy

# Okabe and Ito's colours, without their yellow, which is hard to see on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
NUM_BINS = 40


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: its name in the legend.
        x, y: its points; None in y is a gap.
        low, high: ends of the interval at each point; empty without.
        mark: "bars" and "band" show the intervals so, "line" has no markers, "columns" are of a histogram.
        look: number of its colour, marker and line style.
        strong: drawn to be seen first.
        side: "lower" or "upper" of a sandwich, whose sides share a label and an entry in the legend; "" otherwise.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    mark: str = "bars"
    look: int = 0
    strong: bool = True
    side: str = ""

    @staticmethod
    def of(label: str, points: Sequence[tuple[float, Estimate]], mark: str, look: int, side: str = "") -> "Series":
        """Numbers with intervals; an infinite interval is drawn as none, an infinite number not at all."""
        shown = [(at, e) for at, e in points if math.isfinite(e.value)]
        low = [e.low if math.isfinite(e.low) else e.value for _, e in shown]
        high = [e.high if math.isfinite(e.high) else e.value for _, e in shown]
        return Series(label, [at for at, _ in shown], [e.value for _, e in shown], low, high, mark, look, side=side)


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        name: of its files.
        title: what it shows.
        caption: what to see in it.
        x_title, y_title: of the axes, with units.
        series: its lines.
        log_x: whether x is logarithmic, with a tick at each value that occurs.
        span: ends of a horizontal band and its label.
    """

    name: str
    title: str
    caption: str
    x_title: str
    y_title: str
    series: Sequence[Series]
    log_x: bool = False
    span: tuple[float, float, str] | None = None

    @property
    def rows(self) -> list[tuple[str, list[float]]]:
        """Its numbers as a table: series, and x, y, low, high. Series without intervals have none."""
        return [
            (f"{each.label} {each.side}".strip(), [at, *(round(value, 3) for value in (y, low, high))])
            for each in self.series
            for at, y, low, high in zip(each.x, each.y, each.low, each.high, strict=False)
            if y is not None
        ]

    @property
    def ticks(self) -> list[float]:
        """Every x that occurs."""
        return sorted({at for each in self.series for at in each.x})


def bounds(certificates: Mapping[str, Certificate]) -> Chart:
    """Sandwiches of log Z against particles, by sampler and method; what is the same is drawn once."""
    series: list[Series] = []
    for name, certificate in certificates.items():
        iwae, smc = ([b for b in certificate.bounds if b.method == method] for method in ("iwae", "smc"))
        # Without a twist nothing resamples.
        same = {b.lower.value for b in iwae} == {b.lower.value for b in smc}
        for label, sandwiches in (("IWAE = SMC", iwae),) if same else (("IWAE", iwae), ("SMC", smc)):
            look = len({each.look for each in series})
            below = [(b.num_particles, b.lower) for b in sandwiches]
            above = [(b.num_particles, b.upper) for b in sandwiches if b.upper is not None]
            if sandwiches:
                series.append(Series.of(f"{name}, {label}", below, "bars", look, "lower"))
            if above:
                series.append(Series.of(f"{name}, {label}", above, "bars", look, "upper"))
    used = list(certificates.values())[-1].divergences.log_Z
    caption = (
        "Lower bounds rise and upper bounds fall towards log Z; bars are 95 % intervals, and a point without one comes "
        "from too few runs to say."
    )
    span = (used.low, used.high, "log Z used, 95 %") if math.isfinite(used.half_width) else None
    return Chart(
        "bounds",
        "Sandwiches of log Z",
        caption,
        "number of particles N",
        "bounds on log Z (nats)",
        series,
        log_x=True,
        span=span,
    )


Curve = Sequence[tuple[float, Estimate]]


def curves(history: History, after: Certificate) -> dict[str, Curve]:
    """Both KLs after each update where they were estimated: by certificates, else by what training judges by.

    Without exact samples training judges by a bound on log Z, and neither KL is known. Nor is it where log Z is a mean
    over prompts: those that training judges by may be others.
    """
    if after.divergences.kl_target_q is None:
        return {"kl_q_target": [], "kl_target_q": []}
    certified = [(update, certificate.divergences) for update, certificate in history.certificates.items()]
    if certified:
        return {
            "kl_q_target": _known([(at, each.kl_q_target) for at, each in certified]),
            "kl_target_q": _known([(at, each.kl_target_q) for at, each in certified if each.kl_target_q is not None]),
        }
    log_Z, looks = after.divergences.log_Z, [] if after.by_prompt else history.looks
    return {
        "kl_q_target": _known([(look.update, difference(log_Z, look.f)) for look in looks if look.f is not None]),
        "kl_target_q": _known([(look.update, difference(look.held_out, log_Z)) for look in looks]),
    }


def _known(curve: Curve) -> Curve:
    """KLs of which something is known."""
    return [(at, kl.as_divergence) for at, kl in curve if kl.as_divergence.is_known]


def divergences(runs: Mapping[str, Mapping[str, Curve]]) -> list[Chart]:
    """Both KLs against updates, a chart each, a line for each run that has it."""
    about = {
        "kl_q_target": ("KL(q‖σ)", "What q does that σ would not"),
        "kl_target_q": ("KL(σ‖q)", "What q misses of σ"),
    }
    charts = []
    for name, (title, meaning) in about.items():
        drawn = [(label, run[name]) for label, run in runs.items() if run[name]]
        series = [Series.of(label, curve, "band", look) for look, (label, curve) in enumerate(drawn)]
        if series:
            caption = (
                f"{meaning}; bands are 95 % intervals, the error of log Z included. Where a band ends at its line, "
                "nothing limits it on that side: too few exact samples."
            )
            charts.append(Chart(name.replace("_", "-"), f"{title} during training", caption, "updates", "nats", series))
    return charts


def smc_charts(diagnostics: Diagnostics) -> list[Chart]:
    """ESS, genealogy and weights."""
    return [ess(diagnostics), genealogy(diagnostics.genealogy), weights(diagnostics)]


def ess(diagnostics: Diagnostics) -> Chart:
    """ESS and distinct ancestors by step as shares of N, and the share of runs that were resampled."""
    steps = [float(t) for t in range(1, diagnostics.ess.shape[1] + 1)]
    rows = (
        ("ESS", diagnostics.ess / diagnostics.num_particles),
        ("distinct ancestors of the last particles", diagnostics.num_ancestors.double() / diagnostics.num_particles),
        ("runs resampled before the step", diagnostics.resampled.double()),
    )
    series = []
    for look, (label, values) in enumerate(rows):
        # Whether a run is resampled is 0 or 1: the range says nothing.
        low, high = ([], []) if look == 2 else (values.amin(0).tolist(), values.amax(0).tolist())
        series.append(Series(label, steps, values.mean(0).tolist(), low, high, "band", look))
    caption = "Mean over the runs of SMC" + (", with their range." if len(diagnostics.ess) > 1 else ".")
    return Chart(
        "ess", "Effective sample size by step", caption, "token", f"share of N = {diagnostics.num_particles}", series
    )


def genealogy(tree: Genealogy) -> Chart:
    """Lineages of one run: those that reach the end, and those that died out."""
    strokes = _strokes(tree)
    series = [
        Series("died out", *_joined(strokes[False]), mark="line", look=1, strong=False),
        Series("reaches the end", *_joined(strokes[True]), mark="line", look=0),
    ]
    return Chart(
        "genealogy",
        "Genealogy of one run of SMC",
        "Where lines fork, resampling copied a particle.",
        "token",
        "particle",
        series,
    )


Stroke = list[tuple[int, int]]


def _strokes(tree: Genealogy) -> dict[bool, list[Stroke]]:
    """Every lineage once, as (step, slot) from its end back to where it branched off; by whether it reaches the end."""
    parents, survives = tree.parents.tolist(), tree.survives.tolist()
    drawn = [[False] * len(row) for row in parents]
    strokes: dict[bool, list[Stroke]] = {True: [], False: []}
    # Those that reach the end first: the others branch off from them.
    for alive in (True, False):
        for end in reversed(range(len(parents))):
            for slot in range(len(parents[end])):
                if survives[end][slot] == alive and not drawn[end][slot]:
                    strokes[alive].append(_stroke(parents, drawn, end, slot))
    return strokes


def _stroke(parents: list[list[int]], drawn: list[list[bool]], step: int, slot: int) -> Stroke:
    """One lineage, marked as drawn; steps in the same slot are one straight piece."""
    points = [(step, slot)]
    while not drawn[step][slot] and step > 0:
        drawn[step][slot] = True
        step, slot = step - 1, parents[step][slot]
        if len(points) > 1 and points[-2][1] == points[-1][1] == slot:
            points.pop()
        points.append((step, slot))
    drawn[step][slot] = True
    return points


def _joined(strokes: list[Stroke]) -> tuple[list[float], list[float | None]]:
    """x and y of all strokes, with gaps between."""
    x: list[float] = []
    y: list[float | None] = []
    for points in strokes:
        x += [step + 1 for step, _ in points] + [points[-1][0] + 1]
        y += [*(slot for _, slot in points), None]
    return x, y


def weights(diagnostics: Diagnostics) -> Chart:
    """Distribution of the final log weights around the log of their mean."""
    relative = (diagnostics.log_w - log_mean_exp(diagnostics.log_w.flatten())).flatten()
    living = relative[relative.isfinite()].numpy()
    counts, edges = np.histogram(living, bins=NUM_BINS)
    shape = "no tail to fit" if diagnostics.pareto_k is None else f"Pareto k̂ = {diagnostics.pareto_k:.3f}"
    dead = relative.numel() - living.size
    caption = (
        f"{shape} (at most {diagnostics.max_pareto_k:.3f} is wanted); {dead} of {relative.numel()} weights are zero; "
        f"{float(diagnostics.num_distinct.double().mean()):.0f} different sequences among {diagnostics.num_particles}."
    )
    return Chart(
        "weights",
        "Final weights",
        caption,
        "log w − log mean w (nats)",
        "particles",
        [Series("particles", ((edges[1:] + edges[:-1]) / 2).tolist(), counts.tolist(), mark="columns")],
    )
