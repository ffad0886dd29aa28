"""Diagnostics of SMC: what was recorded, against what can be rebuilt from it; a planted example for every warning."""

import json

import pytest
import torch

from tests.cases import Case, TablePotential, make_case
from twistlm.core.logmath import ess
from twistlm.core.rng import Rng
from twistlm.sampling.diagnostics import Diagnostics, _died, findings, weights_by_step
from twistlm.sampling.particles import SMCResult
from twistlm.sampling.sampler import Sampler
from twistlm.sampling.twisted import TwistedLM


def run(model: TwistedLM, case: Case, *, num_particles: int = 8, num_runs: int = 6, **settings: float) -> SMCResult:
    sampler = Sampler(model, case.potential, case.num_steps, **settings)
    return sampler.smc(Rng(2), [case.at] * num_runs, num_particles)


def diagnosed(model: TwistedLM, case: Case, **settings: int) -> Diagnostics:
    return Diagnostics.of([run(model, case, **settings)], case.lm)


def test_weights_are_those_that_smc_had(case: Case) -> None:
    result = run(case.twisted, case, ess_threshold=0.9)
    replayed = weights_by_step(result)
    torch.testing.assert_close(replayed[-1], result.particles.log_w)
    for info, log_w in zip(result.infos, replayed, strict=True):
        torch.testing.assert_close(ess(log_w), info.ess)


def test_the_genealogy_spells_every_sequence(case: Case) -> None:
    result = run(case.twisted, case, ess_threshold=1.0)
    tree = Diagnostics.of([result], case.lm).genealogy
    for n, tokens in enumerate(result.particles.tokens[0].tolist()):
        slot, spelt = n, []
        for t in reversed(range(case.num_steps)):
            spelt.append(tree.pieces[t][slot])
            slot = int(tree.parents[t, slot])
        assert "".join(reversed(spelt)) == "".join(map(str, tokens))


def test_ancestors_are_counted_from_the_end(case: Case) -> None:
    found = diagnosed(case.twisted, case, ess_threshold=1.0)
    tree = found.genealogy
    # By the definition: walk every final particle back.
    for t in range(case.num_steps):
        reached = set()
        for n in range(8):
            slot = n
            for s in range(case.num_steps - 1, t, -1):
                slot = int(tree.parents[s, slot])
            reached.add(slot)
        assert int(found.num_ancestors[0, t]) == len(reached)
        assert set(tree.survives[t].nonzero().flatten().tolist()) == reached
    assert found.num_ancestors[:, -1].tolist() == [8] * 6
    assert int(found.num_ancestors[:, 0].min()) < 8, "had nothing died out, this would prove nothing"


def test_batches_of_runs_are_joined(case: Case) -> None:
    first, second = run(case.twisted, case), run(case.base, case, num_runs=2)
    joined = Diagnostics.of([first, second], case.lm)
    parts = [Diagnostics.of([each], case.lm) for each in (first, second)]
    for name in ("ess", "resampled", "num_ancestors", "log_w", "num_distinct"):
        torch.testing.assert_close(getattr(joined, name), torch.cat([getattr(part, name) for part in parts]))
    torch.testing.assert_close(joined.died, (6 * parts[0].died + 2 * parts[1].died) / 8)


def test_duplicates_are_counted(case: Case) -> None:
    result = run(case.twisted, case, num_particles=40)
    found = Diagnostics.of([result], case.lm)
    expected = [len({tuple(tokens) for tokens in each.tolist()}) for each in result.particles.tokens]
    assert found.num_distinct.tolist() == expected
    assert max(expected) < 40, "27 sequences cannot give 40 different ones"


def test_it_survives_json(case: Case) -> None:
    case.potential.table[::3] = -torch.inf
    found = diagnosed(case.twisted, case, num_particles=30)
    assert bool(found.log_w.isneginf().any())
    again = Diagnostics.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False)))
    for name in ("ess", "resampled", "num_ancestors", "log_w", "num_distinct", "died"):
        torch.testing.assert_close(getattr(again, name), getattr(found, name))
    torch.testing.assert_close(again.genealogy.log_w, found.genealogy.log_w)
    assert again.pareto_k == found.pareto_k


def test_pareto_k_is_the_shape_of_the_tail(case: Case) -> None:
    found = diagnosed(case.twisted, case)
    generator = torch.Generator().manual_seed(0)
    for shape in (0.3, 0.9):
        # Weights U^(−k) have a Pareto tail of shape k exactly.
        uniform = torch.rand(4000, generator=generator, dtype=torch.float64)
        object.__setattr__(found, "log_w", -shape * uniform.log().view(4, 1000))
        assert found.pareto_k == pytest.approx(shape, abs=0.15)
    for none in (torch.zeros(4, 1000), torch.arange(99.0).view(1, 99), torch.arange(1000.0).clamp_max(300).view(1, -1)):
        object.__setattr__(found, "log_w", none.double())
        assert found.pareto_k is None


# --- Findings ---


def test_exact_twists_raise_no_warning(case: Case) -> None:
    found = diagnosed(case.optimal, case, num_particles=40)
    torch.testing.assert_close(found.ess, torch.full_like(found.ess, 40.0))
    assert not found.resampled.any()
    assert findings(found) == []


def only(problem: str, found: list) -> None:  # type: ignore[type-arg]
    assert [each.problem.split(":")[0] for each in found] == [problem]
    assert found[0].remedy
    assert "\n" not in str(found[0])


def spiked(case: Case, log_phi: float) -> Case:
    """φ = 1 for one sequence that p₀ writes once in a hundred, and exp(log_phi) for all others."""
    table = torch.full_like(case.potential.table, log_phi)
    rare = case.truth.tokens[(case.truth.log_p.exp() - 0.01).abs().argmin()]
    potential = TablePotential(table, case.potential.vocab_size)
    powers = potential.vocab_size ** torch.arange(case.num_steps)
    table[(int((rare * powers).sum()) + int(case.prompt.sum())) % len(table)] = 0.0
    object.__setattr__(potential, "log_upper_bound", 0.0)
    return Case(case.lm, potential, case.prompt, case.num_steps, case.eos)


def test_too_few_particles() -> None:
    hard = spiked(make_case(), -9.0)
    found = diagnosed(hard.base, hard, num_particles=300, num_runs=5)
    only("Too few particles", findings(found))
    assert "ESS" in findings(found)[0].problem
    # The exact twist needs no more of them.
    assert findings(diagnosed(hard.optimal, hard, num_particles=300, num_runs=5)) == []


def test_a_heavy_tail_is_too_few_particles(case: Case) -> None:
    found = diagnosed(case.optimal, case, num_particles=500)
    uniform = torch.rand(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    object.__setattr__(found, "log_w", -1.5 * uniform.log().view(6, 500))
    only("Too few particles", findings(found))
    assert "k̂" in findings(found)[0].problem


def test_a_dead_step() -> None:
    case = make_case()
    # Nine in ten sequences are forbidden; the twist does not know.
    case.potential.table[: len(case.potential.table) - 2] = -torch.inf
    case.potential.table[-2:] = -0.1
    found = diagnosed(case.base, case, num_particles=200)
    step = [each for each in findings(found) if each.problem.startswith("A dead step")]
    only("A dead step", step)
    assert "at step 3 of 3" in step[0].problem
    sees_it = diagnosed(case.optimal, case, num_particles=200)
    assert float(sees_it.died.max()) == 0.0


def test_those_that_die_later_are_counted_among_the_living() -> None:
    # Half die at step 2 and are resampled away, half of the rest at step 3: half each time, not a quarter.
    dead = torch.tensor([[[False] * 4, [True, True, False, False], [True, False, True, False]]])
    resampled = torch.tensor([[False, False, True]])
    assert _died(dead, resampled).tolist() == [0.0, 0.5, 0.5]
    # Not resampled, only the two that lived can die: one of them did.
    dead[0, 2] = torch.tensor([True, True, True, False])
    assert _died(dead, torch.zeros(1, 3, dtype=torch.bool)).tolist() == [0.0, 0.5, 0.5]
