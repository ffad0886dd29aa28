"""The probability of a run's event: only where the potential is an event's, and with the interval of log Z."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.runs.test_certify import CONFIG
from twistlm import Run, Target, train
from twistlm.certificates.certificate import Certificate, OfPrompt
from twistlm.core.estimates import Estimate
from twistlm.core.storage import as_json
from twistlm.potentials import Classifier, Contains, JsonSchema, Length, Regex, Threshold, spec
from twistlm.report.event import Chance, chance_of, eps_of
from twistlm.report.page import page_data, save_page
from twistlm.report.page.prompts import EVENT, prompts_of
from twistlm.report.record import Record

if TYPE_CHECKING:
    from playwright.sync_api import Browser

EPS = 0.05
REGEX = Regex("e", eps=EPS, of="continuation")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A real run on an event, certified by base draws among other things."""
    target = Target("stories", REGEX, "Once upon a time", 2, eos="ignore")
    found = train(target, config=CONFIG, out=tmp_path_factory.mktemp("event") / "run")
    assert found.folder is not None
    found.folder.evaluations.add({"after": found.evaluate((2,), num_samples=64, budget=32)}, {})
    return found


@pytest.fixture(scope="module")
def record(run: Run) -> Record:
    assert run.folder is not None
    return Record.read(run.folder.path, "run")


def with_potential(record: Record, potential: Any) -> Record:
    assert record.outline.target is not None
    target = replace(record.outline.target, potential=potential)
    return replace(record, outline=replace(record.outline, target=target))


def with_log_Z(certificate: Certificate, log_Z: Estimate) -> Certificate:
    return replace(certificate, divergences=replace(certificate.divergences, log_Z=log_Z))


@pytest.mark.parametrize(
    ("potential", "eps"),
    [
        (REGEX, EPS),
        (Threshold(Classifier("toxicity", "toxic"), 0.5, eps=1e-16), 1e-16),
        (Contains("dragon") * Length(max=5), 0.0),
        (Contains("dragon") ** 2.0, 0.0),
        (JsonSchema({"type": "string"}), 0.0),
        # Soft ones are no events, and of several with a margin φ has more than two values.
        (Classifier("toxicity", "toxic"), None),
        (REGEX * Contains("dragon"), None),
        (REGEX**2.0, None),
        (Classifier("toxicity", "toxic") * Contains("dragon"), None),
    ],
)
def test_only_an_indicator_is_an_event(record: Record, potential: Any, eps: float | None) -> None:
    assert eps_of(with_potential(record, spec(potential))) == eps


@pytest.mark.parametrize(
    "described",
    [{}, {"name": 3}, {"name": "nowhere"}, {"name": "regex", "eps": "x"}, {"name": "regex", "eps": math.inf},
     {"name": "product", "parts": []}, {"name": "product", "parts": ["regex"]}, {"name": "power", "base": None}],
)  # fmt: skip
def test_what_is_not_understood_is_no_event(record: Record, described: Any) -> None:
    assert eps_of(with_potential(record, described)) is None


def test_it_is_log_Z_without_the_margin(run: Run, record: Record) -> None:
    found, kls = chance_of(record), record.after.divergences
    assert found is not None
    ends = (found.probability.value, found.probability.low, found.probability.high)
    assert ends == pytest.approx([math.exp(x) - EPS for x in (kls.log_Z.value, kls.log_Z.low, kls.log_Z.high)])
    # And it is true: how many base draws have the letter.
    texts = run.base_samples(4000).texts
    share = sum("e" in text for text in texts) / len(texts)
    assert found.probability.low - 0.03 < share < found.probability.high + 0.03
    assert found.under_q.value == pytest.approx(kls.phi.value - EPS)


def test_never_a_number_that_was_not_there(record: Record) -> None:
    unknown = with_log_Z(record.after, Estimate(-1.0, -math.inf, math.inf, 9))
    assert Chance.of(unknown, 0.0) is None
    never = Chance.of(with_log_Z(record.after, Estimate(-math.inf, -math.inf, -3.0, 9)), 0.0)
    assert never is not None
    assert never.number == ("never seen", f"(below {math.exp(-3):.2e})")
    assert never.words == "fewer than 1 in 20 answers"
    # With a margin Z is never below it: that much of it says nothing.
    margin = Chance.of(with_log_Z(record.after, Estimate(math.log(EPS), math.log(EPS), math.log(0.06), 9)), EPS)
    assert margin is not None
    assert margin.probability.value == margin.probability.low == 0
    assert margin.probability.high == pytest.approx(0.01)
    above = Chance.of(with_log_Z(record.after, Estimate(-2.0, -3.0, math.inf, 9)), 0.0)
    assert above is not None
    assert above.probability.high == 1


def test_the_page_opens_with_it(browser: "Browser", record: Record, tmp_path: Path) -> None:
    from tests.report.browsing import Watched

    save_page([record], tmp_path / "event.html")
    watched = Watched.open(browser, tmp_path / "event.html")
    found = chance_of(record)
    assert found is not None
    assert watched.page.locator("main h2").first.inner_text() == "How likely it is"
    assert watched.page.locator(".headline").all_inner_texts()[0] == found.words
    assert " ".join(found.number) in watched.page.inner_text("main")
    assert watched.complaints == []
    assert page_data([record])["runs"][0]["event_probability"] == as_json(found.probability)
    soft = with_potential(record, spec(Classifier("toxicity", "toxic")))
    save_page([soft], tmp_path / "soft.html")
    assert "How likely it is" not in (tmp_path / "soft.html").read_text(encoding="utf-8")
    assert page_data([soft])["runs"][0]["event_probability"] is None


def test_of_a_set_every_prompt_has_its_own(record: Record) -> None:
    several = replace(record, certificates={"after": replace(record.after, by_prompt=(OfPrompt("1", record.after),))})
    assert chance_of(several) is None
    found = Chance.of(record.after, EPS)
    assert found is not None
    (row,) = prompts_of(several)
    assert next(iter(row.columns)) == EVENT
    assert row.columns[EVENT] == (*found.number, found.probability.value)
