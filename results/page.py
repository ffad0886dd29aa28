"""The generated part of docs/results.md: our tables beside the published ones, and the pictures."""

from collections.abc import Mapping
from pathlib import Path

from twistlm.errors import ConfigError
from twistlm.pooling import Pooled
from twistlm.report.sweep_tables import plain, remarks, title
from twistlm.storage import save_text

BEGIN, END = "<!-- made by results/methods.py: begin -->", "<!-- made by results/methods.py: end -->"

# KL(q‖σ) and KL(σ‖q) in nats, Zhao et al. (2024), tables 3 to 5: other models, so compare the order of the methods.
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


def write(sweeps: Mapping[str, Pooled], path: Path) -> None:
    """Replace what is between the two marks in the page at `path`.

    Raises:
        ConfigError: the page has no such marks.
    """
    page = path.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        raise ConfigError(f"{path} has lost the lines {BEGIN!r} and {END!r}; put them back")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    sections = "\n".join(section(name, pooled, path.parent) for name, pooled in sweeps.items())
    save_text(path, f"{before}{BEGIN}\n\n{sections}\n{END}{after}")


def section(name: str, pooled: Pooled, folder: Path) -> str:
    """A sweep: remarks, the table with the published figures, the order of the methods, pictures."""
    published = PUBLISHED.get(name, {})
    lines = [
        "| method | KL(q‖σ) | KL(σ‖q) | published | E_q[log φ] | KL(q‖p₀) | learning rate | updates, s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in pooled.rows:
        rate = pooled.asked["settings"][row.method]["training"]["learning_rate"]
        known = " / ".join(f"{kl:.2f}" for kl in published[row.method]) if row.method in published else "—"
        cells = [row.method, plain(row.kl_q_target, 2), plain(row.kl_target_q, 2), known, plain(row.log_phi, 2),
                 plain(row.kl_q_prior, 2), f"{rate:g}", f"{row.seconds.value:.0f}"]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    pictures = [
        f"![{title(pooled)}: {picture}](images/results-{name}-{picture}.png)"
        for picture in ("divergences", "bounds", "resampling")
        if (folder / "images" / f"results-{name}-{picture}.png").exists()
    ]
    text = [f"### {title(pooled)}", " ".join(remarks(pooled)), "\n".join(lines), *_orders(pooled, published), *pictures]
    return "\n\n".join(text) + "\n"


def _orders(pooled: Pooled, published: Mapping[str, tuple[float, float]]) -> list[str]:
    """Both orders by KL(σ‖q), best first, over the methods that both have."""
    ours = {row.method: row.kl_target_q.value for row in pooled.rows if row.kl_target_q is not None}
    both = [method for method in ours if method in published]
    if len(both) < 2:
        return []
    here = sorted(both, key=lambda method: ours[method])
    there = sorted(both, key=lambda method: published[method][1])
    return [f"Order by KL(σ‖q), best first: here {', '.join(here)}; published {', '.join(there)}."]
