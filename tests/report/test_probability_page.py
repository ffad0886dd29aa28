"""The page on the probability of an event: what it says first, that no text is markup, that only its script runs."""

import base64
import hashlib
import re
from pathlib import Path

from twistlm import Target
from twistlm.certificates.events import Event, Span
from twistlm.certificates.probability import Probability, PromptProbability
from twistlm.core.estimates import Estimate
from twistlm.potentials import Regex
from twistlm.report.probability_page import save_probability_page
from twistlm.sampling.prompts import Prompts

EVIL = "<script>alert(1)</script> is mad"


def page(path: Path) -> str:
    half, rare = Estimate(0.5, 0.4, 0.6, 9), Estimate(0.001, 0.0005, 0.002, 9)
    none = Estimate(0.0, 0.0, 0.1, 9)
    event = Event(EVIL, 1.0, -0.1, -3.0, (Span(29, 32, 0.87),))
    by_prompt = (
        PromptProbability("a", 0.5, rare, rare, rare, 2, 9, (event,)),
        PromptProbability("b", 0.25, half, half, half, 4, 9),
        PromptProbability("c", 0.25, none, None, none, 0, 9),
    )
    found = Probability(0.5, rare, rare, 0.001, None, 6, 27, 4.0, 1234, 1, by_prompt)
    prompts = Prompts(("one <b>", "two", "three"), ("a", "b", "c"))
    save_probability_page([found], Target("stories", Regex("mad"), prompts=prompts, num_tokens=4), path)
    return path.read_text(encoding="utf-8")


def test_it_opens_with_one_in_so_many_and_ranks_the_prompts(tmp_path: Path) -> None:
    text = page(tmp_path / "page.html")
    first = re.search(r'<p class="headline">(.*?)</p>', text)
    assert first is not None
    assert first[1] == "1 in 1,000 answers (1 in 500 to 1 in 2,000)"
    body = text[text.index("<tbody>") :]
    assert body.index("b: two") < body.index("a: one") < body.index("c: three")
    assert "never seen" in body


def test_texts_are_no_markup_and_only_its_own_script_runs(tmp_path: Path) -> None:
    text = page(tmp_path / "page.html")
    assert text.count("<script") == 1
    assert 'alert(1)&lt;/script&gt; is <mark title="87 % of the score is lost without it">mad</mark>' in text
    assert "one &lt;b&gt;" in text
    script = text[text.index("<script>") + len("<script>") : text.rindex("</script>")]
    wanted = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{wanted}'" in text
    assert "http" not in text.replace("http-equiv", "")
