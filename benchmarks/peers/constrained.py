"""What a hard constraint costs, system by system: the time to an error of a tenth, and how far draws are off."""

from math import exp, inf, log
from typing import Any

Row = dict[str, Any]
# Relative standard error of Ẑ that everybody is brought to.
TENTH = 0.1
MOST = 1e6


def judge(row: Row, base: Row) -> None:
    """Add to a row what its runs say, with twistlm's row of the same constraint for log Z.

    `seconds_to_tenth` is the time to prepare plus that of so many runs that the mean of Ẑ has a relative standard error
    of a tenth (a number of runs below one counts: fewer particles would do). The relative variance of a run is the
    greater of two: what the runs show, which is never more than their number, and exp(2 gap) − 1, which it would be
    were log Ẑ normal, with the gap that the mean of log Ẑ leaves to log Z: a rare run that finds what all others miss
    is seldom among a few. Best-of-N has hardly ever seen the event: its number of draws follows from twistlm's Z.
    `divergence` is KL(q ‖ σ) of what a proposal draws by itself, given that it satisfies the constraint.
    """
    extra, Z = row["extra_mean"], base["Z_hat_mean"]
    prepare = extra.get("prepare_s", 0.0)
    if row["system"] == "best-of-N":
        draws = (1 - Z) / (Z * TENTH**2) if Z else inf
        row["seconds_to_tenth"] = draws / row["particles"] * row["median_s"]
    elif row["Z_hat_se"] and row["Z_hat_mean"]:
        seen = row["Z_hat_se"] ** 2 * row["runs"] / row["Z_hat_mean"] ** 2
        row["gap"] = log(Z) - row["log_Z_hat_mean"]
        row["relative_sd"] = max(seen, exp(2 * max(row["gap"], 0.0)) - 1) ** 0.5
        row["seconds_to_tenth"] = prepare + (row["relative_sd"] / TENTH) ** 2 * row["median_s"]
    if "excess" in extra and Z and extra["satisfied"]:
        row["divergence"] = extra["excess"] - log(extra["satisfied"]) + log(Z)


def constraint_table(rows: list[Row]) -> list[str]:
    """The table of one constraint."""
    lines = [
        "| system | N | s to prepare | s a run, runs | satisfied | log of mean Ẑ ± se | mean of log Ẑ | sd of Ẑ / Z "
        "| KL(q ‖ σ) | s to ± 10 % | twistlm is faster by | peak MB | z |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    ours = next((row.get("seconds_to_tenth") for row in rows if row["system"] == "twistlm"), None)
    for row in rows:
        extra, seconds = row["extra_mean"], row.get("seconds_to_tenth")
        found = row["Z_hat_mean"]
        spread = f" ± {row['Z_hat_se'] / found:.2f}" if found and row["Z_hat_se"] else ""
        relative = _rounded(row.get("relative_sd"))
        typical = "" if row["log_Z_hat_mean"] is None else f"{row['log_Z_hat_mean']:.2f}"
        divergence = f"{row['divergence']:.2f}" if "divergence" in row else ""
        ratio = f"{_rounded(seconds / ours)}×" if seconds and ours and row["system"] != "twistlm" else ""
        z = "" if row.get("z") is None else f"{row['z']:+.1f}"
        cells = [
            row["system"],
            str(row["particles"]),
            f"{extra.get('prepare_s', 0.0):.1f}",
            f"{row['median_s']:.3g}, {row['runs']}",
            f"{extra['satisfied']:.0%}",
            f"{log(found):.2f}{spread}" if found else "none",
            typical,
            relative,
            divergence,
            _rounded(seconds),
            ratio,
            f"{row['peak_mb']:.0f}",
            z,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _rounded(value: float | None) -> str:
    """Two digits; what is beyond all use is not told apart."""
    if value is None:
        return ""
    if value > MOST:
        return f"> {MOST:,.0f}"
    return f"{value:.2g}" if value < 10 else f"{float(f'{value:.2g}'):,.0f}"
