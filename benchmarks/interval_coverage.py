"""How often our intervals hold the truth, where everything can be summed over: `make coverage`.

Every cell is a potential, a level of log Z, a number of draws and a proposal. Thousands of certificates are made in it
as `twistlm.certify` makes them (base draws, half of them exact samples; the proposal's samples; both sides of log Z by
importance sampling), and every statement of each is compared with the sum over all texts. An end that is infinite says
nothing and cannot be wrong; how often both ends are finite stands beside.

Widths are compared twice: with the empirical Bernstein interval (Maurer and Pontil 2009), which is valid for everything
that has a bound, as ours is meant to be; and with Student's interval with Hall's correction (the delta method for
log Z), wherever that one happens to hold the truth as often as it says. The latter knows nothing of what was not seen,
and a sample of a smooth φ cannot be told from one that has not shown its rare φ = 1 yet.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from scipy.stats import binomtest
from torch import Tensor

from twistlm.certificates.certificate import Certificate
from twistlm.certificates.certify import certify
from twistlm.certificates.evidence import Evidence
from twistlm.certificates.log_Z import of_draws
from twistlm.certificates.spending import Spending
from twistlm.core.estimates import Estimate, difference, mean
from twistlm.core.limits import hall_limit
from twistlm.core.rng import Rng
from twistlm.sampling.cases import Case, Cases
from twistlm.sampling.exact.collection import ExactSamples
from twistlm.sampling.ranges import Ranges
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.samples import Samples

# Texts of the model. Enough for events of one in ten thousand that are not a single text.
TEXTS = 2048
POTENTIALS = ("smooth", "two-valued", "heavy-tailed", "multi-modal")
LEVELS = (0.5, 0.03, 2e-3, 1e-4)
# Base draws and the proposal's samples, by name.
DRAWS = {"few": (256, 64), "default": (4096, 512)}
PROPOSALS = ("base", "trained", "mode-dropping")
STATEMENTS = ("log Z lower", "log Z upper", "log Z", "KL(q‖σ)", "KL(σ‖q)", "E[φ]", "P[event]")
# Of σ is in the mode that a mode-dropping proposal makes so many times rarer.
MODE, RARER = 0.2, 1e6
# No φ of a two-valued potential is 0, as in the paper.
EPS = 1e-16
# There are no prompts in a world.
CASE = Case(torch.zeros(0, dtype=torch.long))
# Of the fresh draws of `twistlm probability` so many are the base model's.
BASE_SHARE = 0.5
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Cell:
    """What is repeated."""

    potential: str
    level: float
    draws: str
    proposal: str


@dataclass(frozen=True)
class World:
    """A cell's target and proposal, summed over: log p₀, log φ and log q of every text [S]."""

    cell: Cell
    log_p: Tensor
    log_phi: Tensor
    log_q: Tensor

    @staticmethod
    def of(cell: Cell) -> "World":
        """The same for the same cell."""
        generator = torch.Generator().manual_seed(100 * POTENTIALS.index(cell.potential) + LEVELS.index(cell.level))
        noise = torch.randn((4, TEXTS), generator=generator, dtype=torch.float64)
        log_p = (1.5 * noise[0]).log_softmax(0)
        log_phi = potential(cell.potential, cell.level, log_p, noise[1:3], generator)
        log_q = proposal(cell.proposal, log_p, log_phi, noise[3])
        return World(cell, log_p, log_phi, log_q)

    @property
    def log_Z(self) -> float:
        """log Σ p₀φ."""
        return float(torch.logsumexp(self.log_p + self.log_phi, 0))

    @cached_property
    def event(self) -> Tensor:
        """The likeliest texts under σ, in order of φ, that make up about half of it [S]."""
        order = self.log_phi.argsort(descending=True)
        mass = (self.log_p + self.log_phi - self.log_Z).exp()[order].cumsum(0)
        inside = torch.zeros(TEXTS, dtype=torch.bool)
        inside[order[: int((mass < 0.5).sum()) + 1]] = True
        return inside

    @cached_property
    def truth(self) -> dict[str, float]:
        """Of every statement."""
        sigma, q = self.log_p + self.log_phi - self.log_Z, self.log_q
        return {
            "log Z lower": self.log_Z, "log Z upper": self.log_Z, "log Z": self.log_Z,
            "KL(q‖σ)": float((q.exp() * (q - sigma)).sum()),
            "KL(σ‖q)": float((sigma.exp() * (sigma - q)).sum()),
            "E[φ]": float((q + self.log_phi).exp().sum()),
            "P[event]": float(self.log_p.exp()[self.event].sum()),
        }  # fmt: skip

    # --- What a certificate asks of a sampler (`twistlm.sampling.sampler.Sampler`) ---

    num_steps, is_conditional, reference = 1, False, None

    @property
    def ranges(self) -> Ranges:
        """A threshold knows both of its values, anything else that φ ≤ 1."""
        low = math.log(EPS) if self.cell.potential == "two-valued" else None
        return Ranges(low, 0.0, is_base=self.cell.proposal == "base")

    def draw(self, rng: Rng, cases: Cases, num_samples: int) -> Samples:
        """Independent texts from q."""
        return self.samples(rng, self.log_q, num_samples)

    def log_ratios(self, samples: Samples) -> Tensor:
        """log p₀φ − log q."""
        return (self.log_p + self.log_phi - self.log_q)[samples.tokens[:, 0]]

    def samples(self, rng: Rng, log_density: Tensor, count: int) -> Samples:
        """Independent texts from a density over all."""
        cumulative = log_density.exp().cumsum(0)
        points = rng.uniform((1, count))[0] * cumulative[-1]
        index = torch.searchsorted(cumulative, points, right=True).clamp_max(TEXTS - 1)
        tokens = index.unsqueeze(1)
        return Samples(
            prompts=[tokens[0]] * count, tokens=tokens, mask=torch.ones_like(tokens, dtype=torch.bool),
            log_p=self.log_p[tokens], log_q=log_density[tokens], log_phi=self.log_phi[index],
        )  # fmt: skip


def potential(name: str, level: float, log_p: Tensor, noise: Tensor, generator: torch.Generator) -> Tensor:
    """log φ ≤ 0 of every text, such that Z is about the level."""
    if name in ("two-valued", "multi-modal"):
        # Texts in random order, as many as the level takes; of two modes one is a tenth as good.
        order = torch.randperm(TEXTS, generator=generator)
        inside = torch.zeros(TEXTS, dtype=torch.bool)
        inside[order[: max(1, int((log_p.exp()[order].cumsum(0) <= level).sum()))]] = True
        high = torch.where(noise[0] > 0.5, 0.0, math.log(0.1)) if name == "multi-modal" else torch.zeros(TEXTS)
        low = -9.0 + noise[1].clamp(-2, 2) if name == "multi-modal" else torch.full((TEXTS,), math.log(EPS))
        return torch.where(inside, high.double(), low.double())
    shape = noise[0] if name == "smooth" else 2.5 * noise[0] / (noise[1].abs() + 0.5)
    below, above = -60.0, 60.0
    for _ in range(80):
        shift = (below + above) / 2
        too_much = float(torch.logsumexp(log_p + (shape + shift).clamp_max(0.0), 0)) > math.log(level)
        below, above = (below, shift) if too_much else (shift, above)
    return (shape + below).clamp_max(0.0)


def proposal(name: str, log_p: Tensor, log_phi: Tensor, noise: Tensor) -> Tensor:
    """log q of every text."""
    if name == "base":
        return log_p
    log_q = log_p + 0.8 * log_phi.clamp_min(log_phi.max() - 12.0) + 0.5 * noise
    if name == "mode-dropping":
        order = torch.randperm(TEXTS, generator=torch.Generator().manual_seed(1))
        sigma = (log_p + log_phi).softmax(0)[order]
        log_q[order[: max(1, int((sigma.cumsum(0) <= MODE).sum()))]] -= math.log(RARER)
    return log_q.log_softmax(0)


@dataclass(frozen=True)
class Found:
    """One repeat: our statements, and those of the plain method."""

    ours: dict[str, Estimate]
    plain: dict[str, Estimate]
    bernstein: dict[str, Estimate]
    alarm: bool


def repeat(world: World, rng: Rng) -> Found:
    """One certificate."""
    num_draws, num_samples = DRAWS[world.cell.draws]
    draws = world.samples(rng.fork("draws"), world.log_p, num_draws)
    rest, rest_phi = torch.arange(num_draws // 2), draws.log_phi[: num_draws // 2]
    accepted = rng.fork("accept").uniform((1, num_draws))[0].log() < draws.log_phi
    accepted[rest] = False
    exact = cast(ExactSamples, _Exact(draws.select(accepted.nonzero().squeeze(-1)))) if accepted.sum() >= 2 else None
    particles = min(16, num_samples // 4)
    # A text is one token: there is nothing to resample.
    spending = Spending((particles,), num_samples, methods=("iwae",))
    evidence = Evidence(exact, (of_draws(rest_phi, 0.0),))
    found = certify(rng.fork("certify"), cast(Sampler, world), CASE, evidence, spending)
    drawn = world.draw(rng.fork("certify").fork("samples"), [CASE], num_samples)
    mixture = torch.logaddexp(world.log_p + math.log(BASE_SHARE), world.log_q + math.log(1 - BASE_SHARE))
    fresh = world.samples(rng.fork("fresh"), mixture, num_draws)
    index = fresh.tokens[:, 0]
    weights = (world.log_p - mixture).exp()[index] * world.event[index]
    ours = statements(found) | {"P[event]": mean(weights, low=0.0, high=1 / BASE_SHARE).clipped(most=1.0)}
    return Found(
        ours, plain(world, rest_phi, drawn, exact, weights), bernstein(rest_phi, drawn, weights), bool(found.alarm)
    )


@dataclass(frozen=True)
class _Exact:
    """Exact samples by this module's own rejection."""

    samples: Samples

    def __len__(self) -> int:
        return len(self.samples)


def statements(found: Certificate) -> dict[str, Estimate]:
    """What a certificate states, by name; those that it does not make are left out."""
    of = found.divergences
    lower, upper = found.log_Z_lower, found.log_Z_upper
    named = {
        "log Z lower": replace(lower, high=math.inf), "log Z upper": upper and replace(upper, low=-math.inf),
        "log Z": of.log_Z, "KL(q‖σ)": of.kl_q_target, "KL(σ‖q)": of.kl_target_q, "E[φ]": of.phi,
    }  # fmt: skip
    return {name: estimate for name, estimate in named.items() if estimate is not None}


def plain(
    world: World, log_phi: Tensor, drawn: Samples, exact: ExactSamples | None, weights: Tensor
) -> dict[str, Estimate]:
    """The intervals of the method that trusts what it has seen."""
    top = float(log_phi.max())
    linear = hall((log_phi - top).exp())
    half, value = linear.half_width / linear.value, top + math.log(linear.value)
    log_Z = Estimate(value, value - half, value + half, linear.n)
    f = hall((drawn.log_p - drawn.log_q).sum(-1) + drawn.log_phi)
    found = {
        "log Z": log_Z, "KL(q‖σ)": difference(log_Z, f), "E[φ]": hall(drawn.log_phi.exp()), "P[event]": hall(weights),
    }  # fmt: skip
    if exact is not None:
        found["KL(σ‖q)"] = difference(hall(world.log_ratios(exact.samples)), log_Z)
    return found


def bernstein(log_phi: Tensor, drawn: Samples, weights: Tensor) -> dict[str, Estimate]:
    """Empirical Bernstein intervals of the means of bounded values."""
    Z = maurer_pontil(log_phi.exp(), 1.0)
    # What the bound leaves is 0; log Z has the least φ there.
    low, high = (math.log(max(end, EPS)) for end in (Z.low, Z.high))
    return {
        "log Z": Estimate(math.log(max(Z.value, EPS)), low, high, Z.n),
        "E[φ]": maurer_pontil(drawn.log_phi.exp(), 1.0),
        "P[event]": maurer_pontil(weights, 1 / BASE_SHARE),
    }


def maurer_pontil(values: Tensor, most: float) -> Estimate:
    """Of the mean of values [n] between 0 and `most` (theorem 4), both sides at 97.5 %, clipped to what is possible."""
    n, middle, log_term = len(values), float(values.mean()), math.log(2 / 0.025)
    half = math.sqrt(2 * float(values.var()) * log_term / n) + 7 * most * log_term / (3 * (n - 1))
    return Estimate(middle, max(0.0, middle - half), min(1.0, middle + half), n)


def hall(values: Tensor) -> Estimate:
    """Student's interval with Hall's correction."""
    x = values.double().numpy()
    return Estimate(float(x.mean()), -hall_limit(-x, 0.025), hall_limit(x, 0.025), len(x))


@dataclass
class Tally:
    """A statement in a cell: how often it was made, was two-sided, held the truth; widths of the two-sided ones."""

    made: int = 0
    held: int = 0
    two_sided: int = 0
    width: float = 0.0
    plain_made: int = 0
    plain_held: int = 0
    plain_width: float = 0.0
    valid_width: float = 0.0

    def add(self, ours: Estimate | None, other: Estimate | None, valid: Estimate | None, truth: float) -> None:
        """One repeat."""
        # What is the truth to rounding is held: an exact 0 is one.
        slack = 1e-9 * max(1.0, abs(truth))
        if ours is not None:
            self.made += 1
            self.held += ours.low - slack <= truth <= ours.high + slack
            if math.isfinite(ours.half_width):
                self.two_sided += 1
                self.width += 2 * ours.half_width
        if other is not None:
            self.plain_made += 1
            self.plain_held += other.low - slack <= truth <= other.high + slack
            self.plain_width += 2 * other.half_width
        if valid is not None and ours is not None and math.isfinite(ours.half_width):
            self.valid_width += 2 * valid.half_width

    @property
    def covers(self) -> bool:
        """Whether 95 % is not refuted, at 99 %."""
        return holds(self.held, self.made)

    @property
    def ratio(self) -> float | None:
        """Our mean width over that of the plain method, where that one is valid and ours two-sided."""
        if not self.two_sided or not self.plain_width or not holds(self.plain_held, self.plain_made):
            return None
        return (self.width / self.two_sided) / (self.plain_width / self.plain_made)


def ratio_to_valid(tally: Tally) -> float | None:
    """Our mean width over the empirical Bernstein interval's."""
    return tally.width / tally.valid_width if tally.valid_width else None


def holds(held: int, made: int) -> bool:
    """Whether the 99 % interval of a coverage reaches 95 %."""
    return made == 0 or bool(binomtest(held, made).proportion_ci(0.99, "exact").high >= 0.95)


def measure(cell: Cell, repeats: int) -> dict[str, Any]:
    """All repeats of a cell."""
    torch.set_num_threads(1)
    world, tallies, alarms = World.of(cell), {name: Tally() for name in STATEMENTS}, 0
    for k in range(repeats):
        found = repeat(world, Rng(k, ("coverage", *map(str, asdict(cell).values()))))
        alarms += found.alarm
        for name, tally in tallies.items():
            tally.add(found.ours.get(name), found.plain.get(name), found.bernstein.get(name), world.truth[name])
    return {
        **asdict(cell), "log_Z": world.log_Z, "repeats": repeats, "alarms": alarms,
        "statements": {
            name: {**asdict(t), "covers": t.covers, "ratio": t.ratio, "ratio_to_valid": ratio_to_valid(t)}
            for name, t in tallies.items()
        },
    }  # fmt: skip


def cells() -> Iterator[Cell]:
    """Every cell."""
    for each in product(POTENTIALS, LEVELS, DRAWS, PROPOSALS):
        yield Cell(*each)


def page(rows: Sequence[dict[str, Any]]) -> str:
    """docs/coverage.md: the worst cell of every statement by potential and draws, and every cell that fails."""
    out = [
        "# Coverage", "", "How often 95 % intervals hold the truth, by `make coverage`: "
        f"{len(rows)} cells of {min(row['repeats'] for row in rows):,} repeats each on a model that can be summed over "
        "([benchmarks/interval_coverage.py](../benchmarks/interval_coverage.py) says how, "
        "[benchmarks/coverage.json](../benchmarks/coverage.json) has every number).", "",
        "Each entry is the least coverage over all levels of Z (0.5 to 1e-4) and, in brackets, the share of statements "
        "with two finite ends; the others are one-sided. A statement that is not made (KL(σ‖q) without two exact "
        "samples) is not counted.", "",
        "| potential | draws | proposal | " + " | ".join(STATEMENTS) + " |",
        "|---|---|---|" + "--:|" * len(STATEMENTS),
    ]  # fmt: skip
    for potential_, draws, proposal_ in product(POTENTIALS, DRAWS, PROPOSALS):
        mine = [r for r in rows if (r["potential"], r["draws"], r["proposal"]) == (potential_, draws, proposal_)]
        if mine:
            shown = [_entry([row["statements"][name] for row in mine]) for name in STATEMENTS]
            out.append(f"| {potential_} | {draws} | {proposal_} | " + " | ".join(shown) + " |")
    failing = [_failure(row, name) for row in rows for name in STATEMENTS if not row["statements"][name]["covers"]]
    tallies = [row["statements"][name] for row in rows for name in STATEMENTS]
    valid = sorted(t["ratio_to_valid"] for t in tallies if t["ratio_to_valid"])
    hall_ratios = {
        name: sorted(r for row in rows if (r := row["statements"][name]["ratio"])) for name in STATEMENTS
    }  # fmt: skip
    alarms, total = sum(row["alarms"] for row in rows), sum(row["repeats"] for row in rows)
    out += [
        "", f"Cells in which 95 % is refuted at 99 %: {len(failing)} of {sum(t['made'] > 0 for t in tallies)}.", "",
        *[f"- {line}" for line in failing],
        "", f"Alarms, which withhold a certificate: {alarms} of {total:,}, each of them false.", "",
        "## Width", "",
    ]  # fmt: skip
    if valid:
        out += [
            "Against the empirical Bernstein interval (log Z, E[φ], P[event]), which holds for whatever is bounded: "
            f"{valid[0]:.2f} to {valid[-1]:.2f} times as wide, {valid[len(valid) // 2]:.2f} in the middle.", "",
        ]  # fmt: skip
    out += [
        "Against Student's interval with Hall's correction, in those cells in which it happens to hold: mean width as "
        "a ratio, least, median and greatest over the cells, and how many are above 1.5. The large ones are smooth "
        "potentials with a small Z: no sample of them can be told from one that has not shown a rare φ = 1 yet, which "
        "is what the multi-modal and two-valued cells are, where the same interval misses.", "",
        "| statement | cells | least | median | greatest | above 1.5 |", "|---|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name, found in hall_ratios.items():
        if found:
            wide = sum(ratio > 1.5 for ratio in found)
            out.append(
                f"| {name} | {len(found)} | {found[0]:.2f} | {found[len(found) // 2]:.2f} | {found[-1]:.2f} | {wide} |"
            )
    return "\n".join([*out, ""])


def _entry(tallies: Sequence[dict[str, Any]]) -> str:
    made = [t for t in tallies if t["made"]]
    if not made:
        return "—"
    worst = min(t["held"] / t["made"] for t in made)
    two_sided = sum(t["two_sided"] for t in made) / sum(t["made"] for t in made)
    return f"{worst:.3f} ({two_sided:.0%})"


def _where(row: dict[str, Any]) -> str:
    return f"{row['potential']}, {row['level']:g}, {row['draws']}, {row['proposal']}"


def _failure(row: dict[str, Any], name: str) -> str:
    tally = row["statements"][name]
    return f"{_where(row)}, {name}: {tally['held']} of {tally['made']}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000, help="of every cell")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, default=HERE / "coverage.json", help="JSON file, added to cell by cell")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "coverage.md")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = json.loads(options.output.read_text()) if options.output.exists() else []
    done = {(row["potential"], row["level"], row["draws"], row["proposal"]): row for row in rows}
    key: Callable[[Cell], tuple[str, float, str, str]] = lambda c: (c.potential, c.level, c.draws, c.proposal)  # noqa: E731
    todo = [c for c in cells() if key(c) not in done or done[key(c)]["repeats"] != options.repeats]
    start = time.monotonic()
    with ProcessPoolExecutor(options.jobs) as pool:
        for k, row in enumerate(pool.map(measure, todo, [options.repeats] * len(todo)), 1):
            done[(row["potential"], row["level"], row["draws"], row["proposal"])] = row
            found = [done[key(c)] for c in cells() if key(c) in done]
            options.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
            left = (time.monotonic() - start) / k * (len(todo) - k) / 60
            print(f"{_where(row)} ({k} of {len(todo)}, about {left:.0f} min left)", flush=True)
    options.page.write_text(page([done[key(c)] for c in cells()]))


if __name__ == "__main__":
    main()
