"""How likely is a rare event? Its probability under a language model, by a twist that is learned on the way.

The event is that a score reaches a threshold. Plain Monte Carlo needs 1/P draws to see it once. Here a twist is learned
in rounds: draw, find the highest level that enough draws reach, learn to reach it, draw again (the cross-entropy
method: Rubinstein 1999; with the pool of all draws of Cornuet et al. 2012). Fresh draws then give an unbiased estimate,
whatever the twist has failed to see.

One twist is learned for all prompts of a set. Every round draws equally often for each, each goes for the highest level
that its own draws reach, and all of them count alike in what is learned, however rare the event is there.

Three things keep rare ways to the event from being missed. The twist is switched on and off at random
(`twistlm.sampling.switching`), so that a text may begin or go on harmlessly. It is fitted for the least variance of the
weights, which a way that few draws took decides. And every round is fitted to lower levels beside the highest one.
"""

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twistlm.certificates.bounds import iwae_from_ratios
from twistlm.certificates.effort import LEVELS, Effort, Search
from twistlm.certificates.events import Event, chosen, spans_of
from twistlm.certificates.fresh import FRESH, Fresh, draw_fresh
from twistlm.certificates.price import price
from twistlm.certificates.probability import Probability, PromptProbability, chance, seen, spelled
from twistlm.certificates.satisfied import only_constraints, satisfied
from twistlm.core.advice import coded
from twistlm.core.errors import ConfigError
from twistlm.core.estimates import CONFIDENCE, Estimate
from twistlm.core.logmath import ess, normalise
from twistlm.core.plain import several
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.core.storage import load_tensors, save_tensors
from twistlm.core.work import HERE, Engine
from twistlm.potentials.base import check_reachable
from twistlm.potentials.conditions import is_conditional
from twistlm.sampling.cases import rows_of, shares_of
from twistlm.sampling.mixture import Pool, snapshot
from twistlm.sampling.ranges import Ranges
from twistlm.sampling.resampling import invert, stratified_points
from twistlm.sampling.sampler import WorkerContext
from twistlm.sampling.samples import Samples
from twistlm.sampling.switching import Switching
from twistlm.sampling.target import Target
from twistlm.twists.updates import step

logger = logging.getLogger("twistlm")

# While learning; fresh draws are switched otherwise.
SWITCHING = Switching()
LEARNING_RATE, WEIGHT_DECAY = 1e-2, 0.1
# Prompts of an update, at most: a variance needs several draws of each.
PROMPTS = 8
# Particles of the upper bound.
PARTICLES = 64


def probability(
    target: Target,
    thresholds: float | Iterable[float],
    *,
    search: Search | None = None,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
    state: Path | None = None,
    engine: Engine | None = None,
) -> list[Probability]:
    """P[φ ≥ threshold] for each threshold, from easy to hard, each starting from the last one's twist.

    Args:
        target: base model, prompts and length; its potential is the score.
        thresholds: of φ; one or several in any order.
        search: how hard to look.
        seed: of everything random.
        report: is told first what all of this will take, which costs a few draws, and then of every round; None logs
            the rounds. Where φ is made of hard constraints alone there are none (`certificates.satisfied`).
        state: folder where every round and every part of the fresh draws is saved; what is there already, of the same
            target, thresholds, search and seed, is gone on from.
        engine: who draws; by default this process, which does for constraints alone whatever the engine.

    Raises:
        ConfigError: the target differs by a condition, a threshold is not above 0 or can never be reached, or
            none is given.
    """
    thresholds = several(thresholds)
    check(target, thresholds)
    search = search or Search()
    if only_constraints(target.potential):
        return satisfied(target, sorted(thresholds), search, seed, report)
    climb = Climb(target, search, Rng(seed, ("probability",)), report or logger.info, state)
    if report is not None:
        report(str(price(climb, thresholds)))
    elsewhere = partial(_context, target, search.twist, dict(search.twist_options))
    with (engine or HERE).start(elsewhere) as workers:
        return [climb.reach(threshold, workers) for threshold in sorted(thresholds)]


def _context(target: Target, twist: str, options: dict[str, Any]) -> WorkerContext:
    """Where draws are made: with a twist that every piece of work sets to what has been learned."""
    return WorkerContext(target.sampler(target.build_twist(Rng(0), twist, options, blank=True)), target.cases)


def check(target: Target, thresholds: Sequence[float]) -> None:
    """Refuse what cannot be asked, before anything is loaded.

    Raises:
        ConfigError: as for `probability`.
    """
    if not thresholds or not all(0 < threshold < math.inf for threshold in thresholds):
        raise ConfigError(f"thresholds must be above 0, at least one, and finite, not {list(thresholds)}")
    if len(set(thresholds)) < len(thresholds):
        raise ConfigError(f"a threshold is named twice among {', '.join(map(str, thresholds))}; name each once")
    check_reachable("threshold", max(thresholds), target.potential)
    if is_conditional(target.potential):
        raise ConfigError("a target that differs by its condition has no single score; use a target without one")


class Climb:
    """The pool of all rounds' draws, and the twist as far as it has learned.

    Attributes:
        target: whose potential is the score.
        search: how hard to look.
        rng: of everything random.
        effort: what rounds and estimates are made of.
        here: the sampler, with the twist, and R cases.
        least: log φ [R] below which draws have no part in learning any more.
    """

    def __init__(
        self,
        target: Target,
        search: Search,
        rng: Rng,
        report: Callable[[str], None] = logger.info,
        state: Path | None = None,
    ) -> None:
        self.target, self.search, self.rng, self.report, self.state = target, search, rng, report, state
        twist = target.build_twist(rng.fork("twist"), search.twist, dict(search.twist_options))
        self.here = WorkerContext(target.sampler(twist), target.cases)
        self.sampler, self.cases = self.here.sampler, self.here.cases
        self.module = twist.module
        self.effort = Effort.of(search, len(self.cases))
        self._pool: Pool | None = None
        self.least = torch.full((len(self.cases),), -math.inf, dtype=torch.float64)
        # By threshold: rounds that are done, draws that they took in all, and whether they are all.
        self.done: dict[str, tuple[int, int, bool]] = {}
        if state is not None and (state / CLIMB).exists():
            self._restore(state / CLIMB)

    @property
    def pool(self) -> Pool:
        """All rounds' draws."""
        assert self._pool is not None, "the first round draws before anything is asked of the pool"
        return self._pool

    def reach(self, threshold: float, engine: Engine = HERE) -> Probability:
        """Learn to reach the threshold, in every way that the rounds show; then estimate. `engine` draws."""
        goal, name = math.log(threshold), spelled(threshold)
        rounds, _, complete = self.done.get(name, (0, 0, False))
        while not complete:
            rounds += 1
            self._draw(rounds, engine)
            levels = self._levels(goal)
            self._tell(rounds, threshold, levels)
            self._forget(levels[:, -1])
            self._learn(levels, rounds)
            reached = levels[:, 0] >= goal
            # An event that one round shows often enough is not rare, or an easier threshold has learned it.
            complete = rounds == self.search.max_rounds or (rounds == 1 and bool(reached.all()))
            if complete and not bool(reached.all()):
                self._warn(rounds, threshold, reached)
            self.done[name] = (rounds, sum(self.pool.counts), complete)
            self._save()
        fresh = self._fresh(threshold, engine)
        found = self._concluded(fresh, threshold, rounds)
        events = [self._events(fresh, r, name) for r in range(len(self.cases))]
        return replace(
            found,
            by_prompt=tuple(replace(each, events=e) for each, e in zip(found.by_prompt, events, strict=True)),
        )

    # --- Rounds ---

    def _draw(self, number: int, engine: Engine) -> None:
        """One round's draws."""
        count = self.effort.each * len(self.cases)
        with bar(f"round {number}: drawing {count:,} texts", count) as report:
            how: dict[str, Any] = {"done": report_of(report), "engine": engine}
            if self._pool is None:
                self._pool = Pool.begun(self.rng, self.sampler, self.cases, count, SWITCHING, **how)
            else:
                self._pool = self._pool.grown(self.rng, self.sampler, self.cases, count, self.least, **how)

    def _rows(self) -> list[Tensor]:
        """For each case the positions of its draws in the pool."""
        return rows_of(self.pool.samples.prompts, self.cases)

    def _tell(self, number: int, threshold: float, levels: Tensor) -> None:
        log_w, reached = self.pool.final_log_ratio, self.pool.samples.log_phi >= math.log(threshold)
        counts = [float(ess(log_w[row][reached[row]])) if bool(reached[row].any()) else 0.0 for row in self._rows()]
        if len(counts) == 1:
            learning = ", ".join(f"{math.exp(level):.2g}" for level in levels[0].unique().flip(0).tolist())
        else:
            there = int((levels[:, 0] >= math.log(threshold)).sum())
            learning = f"{spelled(threshold)} at {there} of {len(counts)} prompts, and less at the others"
        self.report(
            f"round {number}: of {sum(self.pool.counts):,} draws, {sum(counts):.0f} effective ones reach "
            f"{spelled(threshold)}; learning to reach {learning}"
        )

    def _warn(self, rounds: int, threshold: float, reached: Tensor) -> None:
        late = [name for name, there in zip(self.target.prompts.names, reached.tolist(), strict=True) if not there]
        named = ", ".join(late[:5]) + (", …" if len(late) > 5 else "")
        where = "" if len(reached) == 1 else f" at {len(late)} of {len(reached)} prompts ({named})"
        logger.warning(
            coded(
                "TW314",
                "%d rounds were not enough to learn how φ reaches %g%s: the interval may miss what was never seen. "
                "Raise num_draws or max_rounds",
            ),
            rounds,
            threshold,
            where,
        )

    def _levels(self, goal: float) -> Tensor:
        """Of each case the highest log score, up to the goal, that draws of enough effective number reach, and the
        likelier ones, [R, L].

        If they are nowhere enough, the highest is the best draw's; −inf where φ was never more than 0.
        """
        log_phi, log_w = self.pool.samples.log_phi, self.pool.final_log_ratio
        need = min(self.search.min_ess, max(2.0, self.effort.each / 8))
        return torch.stack([levels_of(log_phi[row], log_w[row].exp(), goal, need) for row in self._rows()])

    def _forget(self, lowest: Tensor) -> None:
        """Drop draws that have no part in learning, which will hardly look below half of its lowest level [R] again."""
        self.least = torch.maximum(self.least, lowest - math.log(2))
        kept = [
            row[self.pool.samples.log_phi[row] >= least] for row, least in zip(self._rows(), self.least, strict=True)
        ]
        self._pool = self.pool.select(torch.cat(kept).sort().values)

    def _learn(self, levels: Tensor, number: int) -> None:
        """Fit the twist to the draws that reach the levels [R, L]: least variance of the weights, as far as they tell.

        The second moment of p₀/q̄ on an event is P times its mean over σ, which the pool's weighted draws estimate. The
        lower levels keep open what has not led to the event yet. Every prompt is as good as another: what counts is
        the mean of the logarithm.
        """
        log_phi, log_w = self.pool.samples.log_phi, self.pool.final_log_ratio
        rows = [row for row in self._rows() if bool(log_phi[row].isfinite().any())]
        if not rows:
            return
        shown = [level for level in levels if bool(level.isfinite().all())]
        taken = [chances(log_phi[row], log_w[row], level) for row, level in zip(rows, shown, strict=True)]
        rng = self.rng.fork("learn", sum(self.pool.counts))
        order = rng.fork("order").uniform((1, len(rows)))[0].argsort().tolist()
        together, updates = min(len(rows), PROMPTS), self.effort.updates
        size = self.effort.batch // together
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(
            parameters, lr=LEARNING_RATE * self.effort.stride, weight_decay=WEIGHT_DECAY, fused=True
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
        with bar(f"round {number}: learning", updates) as report:
            for update in range(updates):
                points = stratified_points(rng.fork(update), together * LEVELS, size).view(together, LEVELS, size)
                turn = [order[(update * together + k) % len(rows)] for k in range(together)]
                drawn = [rows[r][invert(taken[r], points[k])] for k, r in enumerate(turn)]
                loss = self._loss(torch.stack(drawn).flatten(0, 1))
                step(optimiser, loss, parameters)
                schedule.step()
                report(update + 1, "")

    def _loss(self, index: Tensor) -> Tensor:
        """The mean of log Σ p₀/q̄ over groups of draws at `index` [groups, size]; each draw is scored once."""
        distinct, place = index.unique(return_inverse=True)
        times = torch.zeros(len(index), len(distinct), dtype=torch.float64)
        times = times.scatter_add(1, place, torch.ones_like(place, dtype=torch.float64))
        log_ratio = self.log_ratio(self.pool.samples.select(distinct))
        return torch.logsumexp(log_ratio + times.log().to(log_ratio.device), 1).mean()

    def log_ratio(self, batch: Samples) -> Tensor:
        """log p₀ − log q̄ of whole sequences [n], with gradient."""
        scores = self.sampler.model.score(batch, normaliser=True)
        assert scores.log_normaliser is not None
        log_q = batch.log_p + (scores.log_psi - scores.log_normaliser).double() * batch.mask
        return batch.log_p.sum(-1) - SWITCHING.log_q(batch.log_p, log_q)[:, -1]

    # --- Estimates ---

    def _fresh(self, threshold: float, engine: Engine = HERE) -> Fresh:
        rng = self.rng.fork("fresh", spelled(threshold))
        return draw_fresh(rng, self.here, self.effort.samples_each, threshold, self.state, engine)

    def _concluded(self, fresh: Fresh, threshold: float, rounds: int) -> Probability:
        """What the fresh draws say."""
        weights, count = fresh.log_w.exp(), fresh.log_w.shape[1]
        weighted, shares = weights * fresh.event, shares_of(self.cases)
        most, together = 1 / FRESH.base, 1 - (1 - CONFIDENCE) / len(self.cases)
        by_prompt = [
            PromptProbability(
                name=name,
                share=float(share),
                value=chance(values, most),
                seen=seen(values),
                simultaneous=chance(values, most, together),
                hits=int(event.sum()),
                num_draws=count,
            )
            for name, share, values, event in zip(self.target.prompts.names, shares, weighted, fresh.event, strict=True)
        ]
        # As many draws of each prompt: the mean over all of them is that of the prompts by their shares. Draws of which
        # each stratum has its number scatter less than as many independent ones (Hoeffding 1956), which limits are of.
        factors = shares.unsqueeze(1) * len(self.cases)
        whole = (weighted * factors).flatten()
        _, drawn, _ = self.done.get(spelled(threshold), (0, sum(self.pool.counts), True))
        total = fresh.log_w.numel()
        return Probability(
            threshold=threshold,
            value=chance(whole, most * float(factors.max())),
            seen=seen(whole),
            self_normalised=float((shares * (weighted.sum(1) / weights.sum(1))).sum()),
            log_upper=_upper(fresh) if len(self.cases) == 1 else None,
            hits=int(fresh.event.sum()),
            num_draws=total,
            ess=float(ess(torch.where(fresh.event, fresh.log_w + factors.log(), -torch.inf).flatten())),
            num_tokens=(drawn + total) * self.target.num_tokens,
            rounds=rounds,
            by_prompt=tuple(by_prompt),
        )

    def _events(self, fresh: Fresh, number: int, name: str) -> tuple[Event, ...]:
        """Texts of the event at one prompt."""
        tokens, log_w, log_phi, log_p = fresh.of(number)
        if len(tokens) == 0 or self.search.num_events == 0 or bool(log_w.isneginf().all()):
            return ()
        rng = self.rng.fork("fresh", name, "events", number)
        index, weights = chosen(rng, tokens, log_w, self.search.num_events)
        tokens, lm = tokens[index], self.target.lm
        spans = spans_of(self.target.bound_potential, lm, self.cases[number].prompt, tokens)
        rows = zip(lm.decode(list(tokens)), weights, log_phi[index], log_p[index], spans, strict=True)
        return tuple(Event(text, float(w), float(phi), float(p), found) for text, w, phi, p, found in rows)

    # --- What is saved after every round ---

    def _save(self) -> None:
        if self.state is None:
            return
        twist = {f"twist.{name}": tensor for name, tensor in snapshot(self.module).items()}
        said = {"counts": self.pool.counts, "done": self.done}
        save_tensors(self.state / CLIMB, {**self.pool.tensors(self.cases), **twist, "least": self.least}, said)

    def _restore(self, path: Path) -> None:
        tensors, said = load_tensors(path)
        twist = {name.removeprefix("twist."): each for name, each in tensors.items() if name.startswith("twist.")}
        self.module.load_state_dict(twist)
        self._pool = Pool.restored(tensors, self.cases, said["counts"], SWITCHING)
        self.least = tensors["least"]
        self.done = {name: (rounds, drawn, complete) for name, (rounds, drawn, complete) in said["done"].items()}


CLIMB = "climb.safetensors"


def report_of(report: Callable[[int, str], None]) -> Callable[[int], None]:
    """A bar's report without a note."""
    return lambda completed: report(completed, "")


def _upper(fresh: Fresh) -> Estimate | None:
    """The bound from above needs exact samples: the base model's own events."""
    reached, exact = torch.where(fresh.event, fresh.log_w, -torch.inf)[0], fresh.log_w[fresh.unsteered & fresh.event]
    if len(exact) < 2 or len(reached) < PARTICLES:
        return None
    return iwae_from_ratios(reached, exact, PARTICLES, Ranges(high=0.0)).upper


# A round learns the highest level that it can, and those that are so many times as likely.
MULTIPLES = (4, 16)
assert len(MULTIPLES) + 1 == LEVELS


def levels_of(log_phi: Tensor, weights: Tensor, goal: float, need: float) -> Tensor:
    """The levels [L] of draws of one case with log φ and weights [n]."""
    if len(log_phi) == 0:
        return torch.full((LEVELS,), -math.inf, dtype=torch.float64)
    order = log_phi.argsort(descending=True)
    log_phi, weights = log_phi[order].double(), weights[order]
    mass = weights.cumsum(0)
    enough = (mass.square() / weights.square().cumsum(0) >= need).nonzero()
    highest = float(log_phi[int(enough[0])]) if len(enough) else -math.inf
    highest = min(goal, highest if math.isfinite(highest) else float(log_phi[0]))
    if not math.isfinite(highest):
        return torch.full((LEVELS,), -math.inf, dtype=torch.float64)
    reached = mass[log_phi >= highest]
    places = torch.searchsorted(mass, reached[-1] * mass.new_tensor(MULTIPLES))
    likelier = log_phi[places.clamp_max(int(log_phi.isfinite().sum()) - 1)]
    return torch.cat([log_phi.new_tensor([highest]), likelier.clamp_max(highest)])


def chances(log_phi: Tensor, log_w: Tensor, levels: Tensor) -> Tensor:
    """The chance [L, n] of each draw of one case to be taken at each of the levels [L]."""
    return torch.stack([normalise(log_w.masked_fill(log_phi < level, -torch.inf)) for level in levels])
