"""The bundled rare event, counted among a million base draws, and estimated by `twistlm probability` without them.

    python -m papers.zhao2024.rare_event              # an hour and a quarter on two cores, resumable
    python -m papers.zhao2024.rare_event --draws 0    # estimates only; what has been counted before stays

The event: p(toxic) of twenty tokens after "Once upon a time, there was a" reaches a threshold. Counts have exact
(Clopper-Pearson) intervals. Writes papers/zhao2024/rare_event.json.
"""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from scipy.stats import binomtest

from papers.zhao2024 import tasks
from papers.zhao2024.settings import HERE, MAIN
from twistlm.certificates import effort, rare_events
from twistlm.core.estimates import CONFIDENCE, Estimate, difference
from twistlm.core.progress import bar
from twistlm.core.rng import Rng
from twistlm.core.storage import as_json, as_type, load_json, save_json
from twistlm.sampling.target import Target

THRESHOLDS = (0.5, 0.9)
# The rare one. The more fresh draws, the less weighs what learning has cost; the more rounds, the less is left unseen.
RARE, SEARCH = 0.9, effort.Search(max_rounds=10, num_samples=327_680)
PIECE, CHUNK = 16_384, 4096


@dataclass(frozen=True)
class Options:
    """How much to count and to estimate.

    Attributes:
        draws: of the base model, rounded up to pieces of 16,384.
        seeds: of the estimate.
        jobs: pieces or estimates at a time, in as many processes.
        out: where pieces and estimates are.
        file: what was found.
    """

    draws: int = 1_000_000
    seeds: int = 5
    jobs: int = 2
    out: Path = Path("runs/rare-event")
    file: Path = HERE / "rare_event.json"


class Task(NamedTuple):
    """A piece of the count, or one estimate."""

    kind: str
    number: int

    def file(self, out: Path) -> Path:
        """Where its result is, once it has one."""
        return out / f"{self.kind}-{self.number}.json"


def target() -> Target:
    """The setting of docs/certify.md."""
    return MAIN["toxicity"].chosen().target()


def do(out: Path, task: Task) -> None:
    """Count a piece, or estimate with one seed."""
    goal = target()
    if task.kind == "count":
        rng = Rng(0, ("count", task.number))
        drawn = goal.collect(rng, num_samples=None, max_draws=PIECE, chunk=CHUNK).draws
        phi = drawn.log_phi.exp()
        result: dict[str, Any] = {"draws": len(phi), "events": {f"{t:g}": int((phi >= t).sum()) for t in THRESHOLDS}}
    else:
        estimates = rare_events.probability(goal, [RARE], search=SEARCH, seed=task.number)
        shown = [{**as_json(each), "plain_tokens": each.plain_tokens(goal.num_tokens)} for each in estimates]
        result = {"seed": task.number, "found": shown}
    save_json(task.file(out), result)


def counted(out: Path) -> dict[str, Any] | None:
    """All pieces together, with the interval of every threshold's probability; None without any."""
    counts = [load_json(path) for path in sorted(out.glob("count-*.json"))]
    draws = sum(piece["draws"] for piece in counts)
    if not draws:
        return None
    events = {name: sum(piece["events"][name] for piece in counts) for name in counts[0]["events"]}
    return {"draws": draws, "events": {name: {"count": n, **_proportion(n, draws)} for name, n in events.items()}}


def _proportion(count: int, total: int) -> dict[str, float]:
    interval = binomtest(count, total).proportion_ci(CONFIDENCE, "exact")
    return {"probability": count / total, "low": float(interval.low), "high": float(interval.high)}


def show(results: Mapping[str, Any]) -> None:
    """A line for every count and for each seed's estimate, with its difference from the count."""
    if (count := results["count"]) is not None:
        for threshold, events in count["events"].items():
            print(threshold, f"of {count['draws']} draws", json.dumps(events), flush=True)
    for run in results["estimates"]:
        for one in run["found"]:
            threshold, estimate = f"{one['threshold']:g}", as_type(Estimate, one["probability"], "found")
            words = [f"{threshold} seed {run['seed']}", json.dumps(one["probability"]), f"ESS {one['ess']:.0f}"]
            words.append(f"{one['plain_tokens'] / one['num_tokens']:.0f} times fewer tokens")
            if count is not None:
                gap = difference(estimate, _counted(count, threshold))
                words.append(f"less the count {gap.value:.2e} [{gap.low:.2e}, {gap.high:.2e}]")
            print(*words, flush=True)


def _counted(count: Mapping[str, Any], threshold: str) -> Estimate:
    event = count["events"][threshold]
    return Estimate(event["probability"], event["low"], event["high"], count["draws"])


def main(options: Options) -> None:
    """Do what is not done; write and print all there is."""
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [Task("count", number) for number in range(-(-options.draws // PIECE))]
    wanted += [Task("estimate", seed) for seed in range(options.seeds)]
    todo = tasks.missing(wanted, options.out)
    work = tasks.do(partial(do, options.out), todo, options.jobs)
    with bar("pieces and estimates", len(todo)) as report, closing(work) as outcomes:
        for done, (task, failure) in enumerate(outcomes, 1):
            if failure is not None:
                raise SystemExit(f"{task.kind} {task.number}: {failure}")
            report(done, "")
    counts = [counted(options.out), load_json(options.file)["count"] if options.file.exists() else None]
    estimates = [Task("estimate", seed).file(options.out) for seed in range(options.seeds)]
    most = max(filter(None, counts), key=lambda count: int(count["draws"]), default=None)
    results = {"count": most, "estimates": [load_json(path) for path in estimates]}
    save_json(options.file, results)
    show(results)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
