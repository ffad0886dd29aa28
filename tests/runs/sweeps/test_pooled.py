"""What a sweep found: statistics by hand on fabricated certificates, and the tables and pictures made of them."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from twistlm.certificates.bounds import Bounds
from twistlm.certificates.certificate import Certificate
from twistlm.certificates.divergences import Divergences
from twistlm.certificates.log_Z import Source
from twistlm.cli import main
from twistlm.core.errors import ConfigError
from twistlm.core.estimates import Estimate, student
from twistlm.core.storage import as_json
from twistlm.report.sweep_tables import as_csv, latex, markdown
from twistlm.runs.sweeps.folder import AskedSweep, AskedTarget, Cell, Reference, SweepFolder
from twistlm.runs.sweeps.pooled import read


def about(value: float, half: float = 0.0) -> Estimate:
    return Estimate(value, value - half, value + half, 2)


def certificate(
    f: float,
    g: float | None,
    lower: float,
    upper: float | None,
    half: float = 0.2,
    source: Source = Source.DRAWS,
    **others: Estimate,
) -> Certificate:
    """One with a narrow sandwich [lower, upper] at N = 8 by SMC, and wide ones that do not count.

    log Z is in the middle of the narrow one, or bounded from below alone; G has an error of 0.3.
    """

    def bounds(method: str, n: int, slack: float) -> Bounds:
        low, high = Estimate(lower - slack, lower - slack - 0.1, lower - slack + 0.1, 2), None
        if upper is not None:
            high = Estimate(upper + slack, upper + slack - 0.1, upper + slack + 0.1 + slack, 2)
        return Bounds(method, n, low, high)

    log_Z = Estimate(lower, lower - half, math.inf, 2) if upper is None else about((lower + upper) / 2, half)
    known: dict[str, Estimate | None] = {
        "f": about(f), "g": None if g is None else about(g, 0.3), "log_Z": log_Z, "kl_q_target": about(99.0),
        "kl_target_q": None if g is None else about(99.0), "kl_q_prior": about(0.5), "log_phi": about(-4.0),
        "phi": about(0.1),
    }  # fmt: skip
    sandwiches = (bounds("iwae", 4, 2.0), bounds("smc", 4, 1.0), bounds("iwae", 8, 0.5), bounds("smc", 8, 0.0))
    ess_fraction = None if source == Source.CONDITIONS else 0.5
    return Certificate(sandwiches, Divergences(**(known | others)), source, ess_fraction, 1, 1.0)  # type: ignore[arg-type]


def fabricate(path: Path, found: dict[tuple[str, int], Certificate], seeds: int, beta: float = 2.0) -> SweepFolder:
    """A sweep's folder with these certificates, and one during training of each run, half a nat worse."""
    asked = AskedSweep(
        experiment="by_hand",
        preset="small",
        options={"beta": beta},
        methods=list(dict.fromkeys(method for method, _ in found)),
        seeds=seeds,
        target=AskedTarget("0", beta),
        settings={},
    )
    folder = SweepFolder.create(path, asked)
    for (method, seed), each in found.items():
        run = folder.run(Cell(method, seed))
        run.save_twist({}, {})
        run.evaluations.finish(dict.fromkeys(("after", "every_step"), each))
        worse = replace(each.divergences, f=about(each.divergences.f.value - 0.5))
        during = as_json(replace(each, divergences=worse))
        run.append_metrics({"kind": "certificate", "update": 0, "certificate": during})
        run.append_metrics({"kind": "update", "update": 0, "seconds": 2.0 + seed})
        run.append_metrics({"kind": "update", "update": 1, "seconds": 1.0})
    return folder


# log Z −3.0, −2.8, −3.4 and −2.0, the last two hardly known: weighted by precision −2.9.
BY_HAND = {
    ("dpg", 0): certificate(-3.9, -1.9, -3.5, -2.5),
    ("mc_squared", 0): certificate(-5.9, None, -3.9, -2.9, half=1e6),
    ("dpg", 1): certificate(-4.1, -2.1, -3.3, -2.3),
    ("mc_squared", 1): certificate(-5.7, None, -2.5, -1.5, half=1e6),
}
T = 12.706204736


def test_pooled_by_hand(tmp_path: Path) -> None:
    fabricate(tmp_path / "sweep", BY_HAND, seeds=3)
    pooled = read(tmp_path / "sweep")
    assert pooled.log_Z is not None
    # Both runs that know it share the base draws and the exact samples: two are no better than one.
    assert (pooled.log_Z.value, pooled.log_Z.half_width) == (pytest.approx(-2.9), pytest.approx(0.2))
    assert pooled.num_missing == 2
    dpg, squared = pooled.rows
    # log Z − F = 1.0 and 1.2; t(0.975, 1) = 12.706; the standard error of their mean is 0.1, and log Z has its own.
    assert dpg.kl_q_target is not None
    assert dpg.kl_q_target.value == pytest.approx(1.1)
    assert dpg.kl_q_target.high == pytest.approx(1.1 + math.hypot(0.1 * T, 0.2))
    assert dpg.kl_q_target.low == 0.0
    # G − log Z = 1.0 and 0.8; the exact samples are the same for all seeds, so their error is no scatter.
    assert dpg.kl_target_q is not None
    assert dpg.kl_target_q.value == pytest.approx(0.9)
    assert dpg.kl_target_q.high == pytest.approx(0.9 + math.hypot(0.1 * T, 0.3, 0.2))
    assert squared.kl_q_target is not None
    assert squared.kl_q_target.value == pytest.approx(2.9)
    assert squared.kl_target_q is None
    assert (dpg.seconds.value, dpg.num_seeds) == (pytest.approx(3.5), 2)
    assert dpg.log_phi_per_beta.value == pytest.approx(-2.0)
    ((update, worse),) = pooled.curve("dpg", pooled.kl_q_target)
    assert (update, worse.value) == (0, pytest.approx(1.6))
    assert [(n, e.value) for n, e in pooled.bounds("dpg", "after", True, "lower")] == [
        (4, pytest.approx(-4.4)), (8, pytest.approx(-3.4))
    ]  # fmt: skip
    assert [(n, e.value) for n, e in pooled.bounds("dpg", "after", False, "upper")] == [
        (4, pytest.approx(-0.4)), (8, pytest.approx(-1.9))
    ]  # fmt: skip


def test_a_table_does_not_contradict_its_runs(tmp_path: Path) -> None:
    """Smoke sweep of toxicity: the runs said −4.806 [−5.268, −4.344] by their base draws, and the table −5.299 ± 0.01.

    What the table says has to be in every run's interval, and its ± no less than what all runs share.
    """
    runs = {
        (method, seed): certificate(-5.8 - seed / 100, -4.1, -6.4, -4.2, log_Z=Estimate(-4.806, -5.268, -4.344, 2048))
        for method in ("ctl", "rl")
        for seed in (0, 1)
    }
    fabricate(tmp_path / "sweep", runs, seeds=2)
    pooled = read(tmp_path / "sweep")
    assert pooled.log_Z is not None
    assert (pooled.log_Z.value, pooled.log_Z.low, pooled.log_Z.high) == pytest.approx((-4.806, -5.268, -4.344))
    for row in pooled.rows:
        assert row.kl_target_q is not None
        assert row.kl_target_q.value == pytest.approx(-4.1 + 4.806)
        assert row.kl_target_q.half_width >= 0.46
    assert "log Z = -4.806 [-5.268, -4.344]" in markdown({"sweep": pooled})
    assert "the error of log Z and, for KL(σ‖q), of the exact samples" in markdown({"sweep": pooled})


def test_student_is_the_textbook_interval() -> None:
    found = student([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.value, found.n) == (3.0, 5)
    assert found.half_width == pytest.approx(2.7764451 * math.sqrt(2.5 / 5))
    assert student([1.0]).half_width == math.inf
    # Equal values say nothing of their scatter.
    assert student([1.0, 1.0]).half_width == math.inf
    with pytest.raises(ConfigError, match="NaN"):
        student([1.0, math.nan])


def test_tables_say_the_same_in_every_format(tmp_path: Path) -> None:
    fabricate(tmp_path / "sweep", BY_HAND, seeds=3)
    pooled = read(tmp_path / "sweep")
    text = markdown({"sweep": pooled})
    assert "log Z = -2.900 [-3.100, -2.700]: by the evidence of 4 runs" in text
    assert "Unfinished: 2 of 6 runs are missing" in text
    # [0.00, 2.39] and [0.00, 2.22]: a KL is not below 0, and ± holds the upper end all the same.
    assert "| dpg | 1.10 ± 1.29 | 0.90 ± 1.32 | -4.00 | 0.50 | 3.5 ± 6.4 | 2 |" in text
    assert "| mc_squared | 2.90 ± 1.29 | — |" in text
    assert r"mc\_squared & $2.90 \pm 1.29$ & --- &" in latex({"sweep": pooled})
    rows = list(csv.DictReader(as_csv({"sweep": pooled}).splitlines()))
    assert [row["method"] for row in rows] == ["dpg", "mc_squared"]
    assert float(rows[0]["kl_q_target_half_width"]) == pytest.approx(math.hypot(0.1 * T, 0.2), rel=1e-4)
    assert float(rows[0]["log_Z_half_width"]) == pytest.approx(0.2)
    assert rows[1]["kl_target_q"] == ""


def test_without_exact_samples_no_kl_is_claimed(tmp_path: Path) -> None:
    fabricate(tmp_path / "sweep", {("ctl", 0): certificate(-4.0, None, -3.0, None)}, seeds=1)
    pooled = read(tmp_path / "sweep")
    assert "Nothing limits log Z from above" in markdown({"sweep": pooled})
    # log Z is at least −3.2 and F is −4, so that KL(q‖σ) is at least 0.8.
    assert "| ctl | ≥ 0.80 | — | -4.00 | 0.50 | 3.0 | 1 |" in markdown({"sweep": pooled})


def test_where_the_target_differs_by_condition_paired_divergences_stand(tmp_path: Path) -> None:
    found = certificate(-4.0, -2.0, -3.5, -2.5, source=Source.CONDITIONS, kl_q_target=about(0.7, 0.1))
    fabricate(tmp_path / "sweep", {("ctl", 0): found}, seeds=1)
    (row,) = read(tmp_path / "sweep").rows
    assert row.kl_q_target is not None
    assert row.kl_q_target.value == 0.7


def test_divergences_of_sets_of_prompts_are_the_runs_own(tmp_path: Path) -> None:
    """log Z is over all prompts that were met, and G over those with exact samples: 1.19 became 3.89 by the table."""

    def certified(g: float, q: float, target: float) -> Certificate:
        kls = {"kl_q_target": about(q, 0.1), "kl_target_q": about(target, 0.2)}
        return certificate(-4.0, g, -9.0, -7.0, source=Source.PROMPTS, **kls)

    found, worse = certified(-2.0, 0.7, 1.2), certified(-4.5, 0.9, 1.4)
    fabricate(tmp_path / "sweep", {("ctl", 0): found, ("dpg", 0): worse}, seeds=1)
    pooled = read(tmp_path / "sweep")
    ctl = pooled.rows[0]
    assert ctl.kl_q_target is not None
    assert ctl.kl_target_q is not None
    assert (ctl.kl_q_target.value, ctl.kl_target_q.value) == (0.7, 1.2)
    assert ctl.kl_target_q.high == pytest.approx(1.4)
    assert pooled.best.cell.method == "ctl"
    assert "It is a mean of what differs by condition or prompt" in markdown({"sweep": pooled})


def test_a_reference_serves_every_run_where_the_target_differs_by_condition(tmp_path: Path) -> None:
    """log Z = −2.9 whatever the runs' own sandwiches say: KL(q‖σ) = −2.9 + 4.0, KL(σ‖q) = −2.0 + 2.9."""
    found = certificate(-4.0, -2.0, -3.5, -2.5, source=Source.CONDITIONS)
    worse = certificate(-4.5, -2.0, -3.5, -2.5, source=Source.CONDITIONS)
    folder = fabricate(tmp_path / "sweep", {("ctl", 0): worse, ("dpg", 0): found}, seeds=1)
    assert read(tmp_path / "sweep").best.cell == Cell("dpg", 0)
    reference = certificate(-4.0, -2.0, -3.1, -2.7, source=Source.CONDITIONS)
    folder.save_reference(Reference("dpg, seed 0", reference))
    pooled = read(tmp_path / "sweep")
    _, row = pooled.rows
    assert row.kl_q_target is not None
    assert row.kl_target_q is not None
    assert (row.kl_q_target.value, row.kl_target_q.value) == (pytest.approx(1.1), pytest.approx(0.9))
    text = markdown({"sweep": pooled})
    assert "over 2 of them is -2.900, the middle of -3.100 and -2.700 (SMC, 8 particles, dpg" in text


def test_seeds_that_learned_nothing_still_have_a_divergence(tmp_path: Path) -> None:
    """The same G from every seed (q = p₀ on the same exact samples): its error is the certificates' own."""
    found = certificate(-4.0, -2.0, -3.5, -2.5, source=Source.CONDITIONS, kl_target_q=about(0.9, 0.2))
    folder = fabricate(tmp_path / "sweep", {("fudge", seed): found for seed in range(3)}, seeds=3)
    folder.save_reference(Reference("fudge, seed 0", found))
    (row,) = read(tmp_path / "sweep").rows
    assert row.kl_target_q is not None
    assert row.kl_target_q.half_width == pytest.approx(0.2)


def test_tables_and_charts_of_two_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fabricate(tmp_path / "mild", BY_HAND, seeds=2, beta=1.0)
    fabricate(tmp_path / "strong", {("ctl", 0): certificate(-4.0, None, -3.0, None)}, seeds=2, beta=5.0)
    assert main(["report", str(tmp_path / "mild"), str(tmp_path / "strong")]) == 0
    printed = capsys.readouterr().out
    assert "strong: 1 runs are missing" in printed
    assert "strong: no divergences against updates" in printed
    for name, stems in (
        ("mild", {"divergences", "bounds", "resampling", "frontier"}),
        ("strong", {"bounds", "resampling"}),
    ):
        drawn = {path.name for path in (tmp_path / name / "plots").iterdir()}
        assert drawn == {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}
    rows = list(csv.DictReader((tmp_path / "mild" / "table.csv").read_text().splitlines()))
    assert [(row["sweep"], row["method"], row["beta"]) for row in rows] == [
        ("mild", "dpg", "1.0"), ("mild", "mc_squared", "1.0"), ("strong", "ctl", "5.0")
    ]  # fmt: skip
    assert main(["report", str(tmp_path / "mild"), "--out", str(tmp_path / "x.html")]) == 2
    assert "--out and --overwrite are for runs" in capsys.readouterr().err


def test_sweeps_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = tmp_path / "a" / "sweep", tmp_path / "b" / "sweep"
    for path in (one, other):
        fabricate(path, {("ctl", 0): certificate(-4.0, None, -3.0, None)}, seeds=1)
    assert main(["report", str(one), str(one.parent / "." / "sweep")]) == 2
    assert "a sweep is named twice" in capsys.readouterr().err
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert main(["report", str(one), str(tmp_path / "circle")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (one / "table.md").exists()
    assert main(["report", str(one), str(other)]) == 0
    printed = capsys.readouterr().out
    rows = csv.DictReader((one / "table.csv").read_text().splitlines())
    assert [row["sweep"] for row in rows] == ["a/sweep", "b/sweep"]
    for name in ("a/sweep", "b/sweep"):
        heading = f"{name}: by_hand, preset small"
        assert heading in printed
        assert f"## {heading}" in (one / "table.md").read_text()
        assert f"% {heading}" in (one / "table.tex").read_text()


def test_every_number_of_every_run_as_a_data_frame(tmp_path: Path) -> None:
    found = {("ctl", 0): certificate(-4.0, -2.0, -3.5, -2.5), ("dpg", 1): certificate(-4.5, None, -3.5, None)}
    frame = fabricate(tmp_path / "sweep", found, 2).to_pandas()
    assert set(frame.method) == {"ctl", "dpg"}
    assert set(frame.sampler) == {"after", "every_step"}
    of = frame[(frame.method == "ctl") & (frame.seed == 0) & (frame["sampler"] == "after")]
    (g,) = of[of.quantity == "g"].itertuples()
    assert (g.value, g.low, g.high, g.n) == pytest.approx((-2.0, -2.3, -1.7, 2))
    sandwich = of[(of.bound == "smc") & (of.num_particles == 8)].set_index("quantity")
    assert sandwich.value.to_dict() == {"log_Z_lower": -3.5, "log_Z_upper": -2.5}
    # What is not known has no row.
    assert "g" not in set(frame[frame.method == "dpg"].quantity)
