"""From single measurements to the tables: speeds, memory, log Z with its spread, and best-of-N at equal quality."""

from itertools import chain
from math import exp, inf, sqrt
from statistics import fmean, median, stdev, variance
from typing import Any

from constrained import constraint_table, judge
from tasks import TASKS

OURS, BEST_OF_N = "twistlm", "best-of-N"
TITLES = {
    "main": "40 particles × 40 tokens",
    "exact": "40 particles × 2 tokens, where Z is known",
    "few": "10 particles × 10 tokens",
    "single": "1 particle × 40 tokens",
    "long": "4 particles × 8 tokens after a prompt of 512, read in every run",
    "long, kept": "the same, and whoever can keep the prompt's cache between runs keeps it",
    "prior": "base sampling, 100 × 20",
    "prior, long": "base sampling, 32 × 200",
    "prior, single": "base sampling, 1 × 40",
    **{f"constraint: {name}": f"{task.title}, at most {task.tokens} tokens" for name, task in TASKS.items()},
}

Row = dict[str, Any]


def summarise(records: list[Row], exact: list[Row], rates: dict[str, float]) -> list[Row]:
    """One row per scenario, system and precision, all rounds together.

    Ratios are to twistlm's row of the same scenario and precision. `z` compares the mean of Ẑ, which is unbiased, with
    the exact value or else with twistlm's mean, in standard errors of the difference. `times_limit` is the median time
    over what the products of N × T tokens take at the measured rate.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for record in records:
        key = (record["scenario"], record["settings"]["dtype"], record["system"])
        groups.setdefault(key, []).append(record)
    rows = [_row(*key, group) for key, group in groups.items()]
    by_key = {(row["scenario"], row["dtype"], row["system"]): row for row in rows}
    for row in rows:
        row["times_limit"] = row["median_s"] * rates[row["dtype"]] / row["operations"]
        base = by_key.get((row["scenario"], row["dtype"], OURS))
        if base is None:
            continue
        row["slower_than_twistlm"] = base["tokens_per_s"] / row["tokens_per_s"]
        row["z"] = _z(row, base, exact)
        if row["scenario"].startswith("constraint: "):
            judge(row, base)
            continue
        if row["system"] == BEST_OF_N and base["Z_hat_se"] is not None:
            row["equal_quality"] = equal_quality(row, base, by_key.get(("doubled", "bfloat16", OURS)))
    return rows


def _row(scenario: str, dtype: str, system: str, group: list[Row]) -> Row:
    seconds = [each for record in group for each in record["seconds"]]
    log_Z_hat = [each for record in group for each in record["log_Z_hat"]]
    alive = [each for each in log_Z_hat if each is not None]
    Z_hat = [0.0 if each is None else exp(each) for each in log_Z_hat]
    settings = group[0]["settings"]
    extra = [each for record in group for each in record["extra"] if each]
    return {
        "scenario": scenario,
        "dtype": dtype,
        "system": system,
        "versions": group[0]["versions"],
        "particles": settings["particles"],
        "tokens": settings["tokens"],
        "operations": group[0]["operations"],
        "runs": len(seconds),
        "median_s": median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "tokens_per_s": settings["particles"] * settings["tokens"] / median(seconds),
        "peak_mb": max(record["peak_mb"] for record in group),
        "above_model_mb": max(record["peak_mb"] - record["resident_mb"] for record in group),
        "alive": len(alive),
        "log_Z_hat_mean": fmean(alive) if alive else None,
        "log_Z_hat_sd": stdev(alive) if len(alive) > 1 else None,
        "Z_hat_mean": fmean(Z_hat),
        "Z_hat_se": _standard_error(Z_hat, extra, settings["particles"]),
        "extra_mean": {name: fmean(each[name] for each in extra if name in each) for name in sorted({*chain(*extra)})},
    }


def _standard_error(Z_hat: list[float], extra: list[Row], particles: int) -> float | None:
    """Of the mean of Ẑ: from single weights where runs are means of independent ones, else from the runs."""
    if extra and "phi_mean" in extra[0]:
        mean = fmean(each["phi_mean"] for each in extra)
        spread = fmean(each["phi_square_mean"] for each in extra) - mean**2
        return sqrt(max(spread, 0.0) / (particles * len(Z_hat)))
    return sqrt(variance(Z_hat) / len(Z_hat)) if len(Z_hat) > 1 else None


def _z(row: Row, base: Row, exact: list[Row]) -> float | None:
    if row["scenario"] == "exact":
        bounds = next((each for each in exact if each["dtype"] == row["dtype"]), None)
        if bounds is None or not row["Z_hat_se"]:
            return None
        return float(row["Z_hat_mean"] - exp((bounds["lower"] + bounds["upper"]) / 2)) / float(row["Z_hat_se"])
    if row["Z_hat_se"] is None or base["Z_hat_se"] is None:
        return None
    spread = sqrt(row["Z_hat_se"] ** 2 + base["Z_hat_se"] ** 2)
    return (row["Z_hat_mean"] - base["Z_hat_mean"]) / spread if row is not base and spread else None


def equal_quality(row: Row, base: Row, doubled: Row | None) -> Row:
    """How many samples give importance sampling the standard error that Ẑ has in one run of twistlm.

    The relative variance of one weight is E_p₀[φ²]/Z² − 1. Samples show it only where φ is not rare; where
    there is a run with 2λ, E_p₀[φ²] is the Z of that target.
    """
    relative_variance = base["runs"] * base["Z_hat_se"] ** 2 / base["Z_hat_mean"] ** 2
    mean = row["extra_mean"]
    made: Row = {
        "relative_variance_of_twistlm": relative_variance,
        "relative_variance_of_weight_seen": mean["phi_square_mean"] / mean["phi_mean"] ** 2 - 1.0,
    }
    per_weight = made["relative_variance_of_weight_seen"]
    if row["scenario"] == "main" and doubled is not None:
        per_weight = made["relative_variance_of_weight_from_doubled"] = (
            doubled["Z_hat_mean"] / base["Z_hat_mean"] ** 2 - 1.0
        )
    made["samples"] = per_weight / relative_variance if relative_variance else inf
    made["seconds"] = made["samples"] * row["median_s"] / row["particles"]
    made["slower_than_twistlm"] = made["seconds"] / base["median_s"]
    return made


def to_markdown(results: Row) -> str:
    """The tables."""
    machine = results["machine"]
    lines = [
        "# twistlm and its peers",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, 2 threads. Made by `compare.py`; the scripts say what each does.",
        f"Load average before and after: {machine['load_average'][0][0]:.1f}, {machine['load_average'][1][0]:.1f}. "
        f"{machine['minutes']:.0f} minutes in all.",
        "",
    ]
    versions: dict[str, str] = {}
    for row in results["rows"]:
        versions.setdefault(row["system"], ", ".join(f"{name} {number}" for name, number in row["versions"].items()))
    lines += [f"- {system}: {text}" for system, text in versions.items()]
    rates = ", ".join(f"{speed / 1e9:,.0f} in {dtype}" for dtype, speed in results["rates"].items())
    lines += [f"- 10⁹ operations per second of the fastest product: {rates}"]
    for each in results["exact"]:
        lines += [f"- exact log Z at T = 2, {each['dtype']}: {each['lower']:.4f} to {each['upper']:.4f}"]
    for scenario, title in TITLES.items():
        rows = [row for row in results["rows"] if row["scenario"] == scenario]
        if rows:
            constrained = scenario.startswith("constraint: ")
            lines += ["", f"## {title}", "", *(constraint_table(rows) if constrained else _table(rows))]
    qualities = [row for row in results["rows"] if "equal_quality" in row]
    if qualities:
        lines += ["", "## Best-of-N at the quality of one run of twistlm", "", *_quality_table(qualities)]
    return "\n".join(lines) + "\n"


def _table(rows: list[Row]) -> list[str]:
    lines = [
        "| system | dtype | N × T | s (range) | × GEMM | tokens/s | twistlm is faster by | MB | above model "
        "| log Ẑ ± sd | runs | z |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["dtype"]):
        ratio = f"{row['slower_than_twistlm']:.2f}×" if "slower_than_twistlm" in row else ""
        spread = "" if row["log_Z_hat_sd"] is None else f" ± {row['log_Z_hat_sd']:.3f}"
        estimate = "all dead" if row["log_Z_hat_mean"] is None else f"{row['log_Z_hat_mean']:.3f}{spread}"
        z = "" if row.get("z") is None else f"{row['z']:+.1f}"
        runs = str(row["runs"]) if row["alive"] == row["runs"] else f"{row['alive']} alive of {row['runs']}"
        lines.append(
            f"| {row['system']} | {row['dtype']} | {row['particles']} × {row['tokens']} "
            f"| {row['median_s']:.3g} ({row['min_s']:.3g}–{row['max_s']:.3g}) "
            f"| {row['times_limit']:.1f} | {row['tokens_per_s']:.1f} | {ratio} "
            f"| {row['peak_mb']:.0f} | {row['above_model_mb']:.0f} | {estimate} | {runs} | {z} |"
        )
    return lines


def _quality_table(rows: list[Row]) -> list[str]:
    lines = [
        "| scenario | dtype | var(Ẑ)/Z² of twistlm | var(φ)/Z² | samples needed | seconds | twistlm is faster by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        quality = row["equal_quality"]
        seen = f"{quality['relative_variance_of_weight_seen']:.3g} seen"
        if "relative_variance_of_weight_from_doubled" in quality:
            seen = f"{quality['relative_variance_of_weight_from_doubled']:.3g} ({seen})"
        lines.append(
            f"| {TITLES[row['scenario']]} | {row['dtype']} | {quality['relative_variance_of_twistlm']:.3g} | {seen} "
            f"| {quality['samples']:.0f} | {quality['seconds']:.3g} | {quality['slower_than_twistlm']:.2f}× |"
        )
    return lines
