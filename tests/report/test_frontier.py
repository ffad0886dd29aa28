"""The frontier of few seeds: all of them are in the picture, and no interval is a line across it."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.text import Annotation

from tests.runs.sweeps.test_pooled import about, certificate, fabricate
from twistlm.report.sweep_plots import frontier
from twistlm.runs.sweeps.pooled import read


def test_two_seeds_are_seen_and_their_wide_intervals_are_arrows(tmp_path: Path) -> None:
    places = {"ctl": ((0.2, -4.0), (0.5, -3.7)), "dpg": ((1.0, -2.0), (1.4, -2.5))}
    found = {
        (method, seed): certificate(-4.0, -2.0, -3.5, -2.5, kl_q_prior=about(x), log_phi=about(y))
        for method, seeds in places.items()
        for seed, (x, y) in enumerate(seeds)
    }
    for beta in (1.0, 2.0):
        fabricate(tmp_path / f"beta-{beta:g}", found, seeds=2, beta=beta)
    sweeps = [read(tmp_path / name) for name in ("beta-1", "beta-2")]
    figure = frontier(sweeps)
    (axes,) = figure.axes
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    drawn = [tuple(map(float, point)) for line in axes.lines for point in line.get_xydata()]
    assert all(left <= x <= right and bottom <= y <= top for x, y in drawn)
    for seeds in places.values():
        for x, y in seeds:
            assert (x, y) in drawn
            assert (x, y / 2) in drawn
    # Student's interval of two is twelve times as wide as they are apart.
    arrows = [each for each in axes.get_children() if isinstance(each, Annotation)]
    assert len(arrows) > 8
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["ctl", "dpg", "β = 1", "β = 2", "single seeds"]
    plt.close(figure)
