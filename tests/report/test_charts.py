"""Charts as data: what is drawn is what is known, whoever draws it."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.cases import Case
from tests.certificates.test_bounds import exact_of
from twistlm.certificates.certificate import Certificate, OfPrompt
from twistlm.certificates.certify import certify
from twistlm.certificates.evidence import Evidence
from twistlm.certificates.spending import Spending
from twistlm.core.estimates import Estimate
from twistlm.core.rng import Rng
from twistlm.report import charts
from twistlm.report.plots import save_charts
from twistlm.runs.folder.history import History, Look
from twistlm.sampling.diagnostics import Diagnostics
from twistlm.sampling.sampler import Sampler


def certified(case: Case) -> Certificate:
    subject = Sampler(case.twisted, case.potential, 3)
    return certify(
        Rng(0),
        subject,
        case.at,
        Evidence(exact_of(case, 60)),
        Spending(num_particles=(2, 8), num_samples=64, budget=64),
    )


def diagnosed(case: Case, ess_threshold: float = 0.9) -> Diagnostics:
    result = Sampler(case.twisted, case.potential, 3, ess_threshold=ess_threshold).smc(Rng(2), [case.at] * 4, 8)
    return Diagnostics.of([result], case.lm)


def test_every_bound_is_drawn_once(case: Case) -> None:
    found = certified(case)
    drawn = [point for series in charts.bounds({"q": found}).series for point in zip(series.x, series.y, strict=True)]
    known = [(b.num_particles, each.value) for b in found.bounds for each in (b.lower, b.upper) if each is not None]
    assert sorted(drawn) == sorted(known)
    assert len({series.look for series in charts.bounds({"q": found}).series}) == 2
    assert charts.bounds({"q": found}).ticks == [2, 8]


def test_what_is_infinite_is_not_drawn() -> None:
    points = [(1, Estimate(-math.inf, -math.inf, math.inf, 3)), (2, Estimate(1.0, -math.inf, math.inf, 1))]
    series = charts.Series.of("q", points, "bars", 0)
    assert (series.x, series.y, series.low, series.high) == ([2], [1.0], [1.0], [1.0])


@pytest.mark.parametrize("threshold", [0.0, 0.9, 1.0])
def test_the_genealogy_has_a_stroke_wherever_a_particle_was(case: Case, threshold: float) -> None:
    tree = diagnosed(case, threshold).genealogy
    ended, alive = charts.genealogy(tree).series
    edges: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}
    for series in (alive, ended):
        points = list(zip(series.x, series.y, strict=True))
        for (x1, y1), (x0, y0) in pairwise(points):
            if y0 is not None and y1 is not None:
                # A long stroke stays in its slot, and stands for all steps between.
                assert x1 - x0 == 1 or y0 == y1
                edges[series is alive] += [(x, y0, y1) for x in range(int(x0), int(x1))]
    expected: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}
    for t in range(1, 3):
        for slot in range(8):
            expected[bool(tree.survives[t, slot])].append((t, int(tree.parents[t, slot]), slot))
    # Each once.
    assert {key: sorted(found) for key, found in edges.items()} == {
        key: sorted(found) for key, found in expected.items()
    }


def test_curves_are_those_of_certificates_where_there_are_any(case: Case) -> None:
    found = certified(case)
    known = replace(found, divergences=replace(found.divergences, log_Z=Estimate(-2.0, -2.0, -2.0, 9)))
    judged = History([], [Look(5, Estimate(-1.0, -1.25, -0.75, 9), None)], {})
    assert charts.curves(judged, known)["kl_target_q"] == [(5, Estimate(1.0, 0.75, 1.25, 9))]
    assert charts.curves(judged, known)["kl_q_target"] == []
    # Of a set of prompts log Z may be over others than training judges by.
    several = replace(known, by_prompt=(OfPrompt("0", found), OfPrompt("1", found)))
    assert charts.curves(judged, several) == {"kl_q_target": [], "kl_target_q": []}
    certified_too = replace(judged, certificates={7: found})
    assert charts.curves(certified_too, known)["kl_q_target"] == [(7, found.divergences.kl_q_target)]


def test_without_exact_samples_no_curve_is_claimed(case: Case) -> None:
    subject = Sampler(case.twisted, case.potential, 3)
    found = certify(Rng(0), subject, case.at, Evidence(), Spending(num_particles=(2,), num_samples=64, budget=64))
    judged = History([], [Look(5, Estimate(4.0, 3.0, 5.0, 9), None)], {})
    assert charts.divergences({"q": charts.curves(judged, found)}) == []


def test_weights_of_the_dead_are_counted_apart(case: Case) -> None:
    case.potential.table[::3] = -torch.inf
    found = diagnosed(case)
    chart = charts.weights(found)
    dead = int(found.log_w.isneginf().sum())
    assert dead > 0
    assert f"{dead} of 32 weights are zero" in chart.caption
    assert sum(chart.series[0].y) == 32 - dead


def test_every_chart_is_saved_for_paper(case: Case, tmp_path: Path) -> None:
    made = [charts.bounds({"q": certified(case)}), *charts.smc_charts(diagnosed(case))]
    paths = save_charts(made, tmp_path)
    assert len(paths) == 8
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")
