"""`twistlm.certify` of a set of prompts: each by its own draws, and the mean over them; by enumeration."""

from twistlm import Target, certify
from twistlm.models.tabular import TabularLM
from twistlm.potentials import Function
from twistlm.testing import Enumeration

STEPS = 2


def log_phi(texts: list[str]) -> list[float]:
    """After 1 by three nats less than after 0, and a little less for every 2."""
    return [-3.0 * (text[0] == "1") - 0.1 * text.count("2") for text in texts]


def test_each_prompt_is_judged_by_its_own_draws() -> None:
    """log Z differs by nats between the prompts: draws of all, taken for one, would be off by that."""
    lm = TabularLM.random(4, STEPS + 1, seed=2)
    scores = Function(log_phi, log_upper_bound=0.0)
    target = Target(lm, scores, prompts=["0", "1"], num_tokens=STEPS, eos="ignore", identity="two prompts")
    found = certify(target, num_draws=2000, num_samples=64, num_particles=(4,), budget=64, seed=3)
    exact = []
    for case in target.cases:
        every = Enumeration.of(target.twisted(), target.bound_potential, case.prompt, STEPS)
        exact.append(float(every.log_Z))
    assert exact[0] - exact[1] > 2.0
    assert [each.name for each in found.by_prompt] == list(target.prompts.names)
    for each, truth in zip(found.by_prompt, exact, strict=True):
        log_Z = each.certificate.divergences.log_Z
        assert log_Z.low <= truth <= log_Z.high, each.name
        assert log_Z.high - log_Z.low < 1.0
    mean = found.divergences.log_Z
    assert mean.low <= sum(exact) / 2 <= mean.high
