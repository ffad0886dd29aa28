"""The report's table of prompts, in a real browser: sorted, searched, opened; hostile prompts as text; 200 of them."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator

from tests.report.browsing import HOSTILE, Watched
from tests.runs.test_prompt_sets import CONFIG, OPENINGS, target
from twistlm import train
from twistlm.certificates.certificate import OfPrompt
from twistlm.cli import main
from twistlm.core.estimates import Estimate
from twistlm.core.storage import as_type
from twistlm.report.page import save_page
from twistlm.report.page.prompts import prompts_of
from twistlm.report.record import PromptText, Record

# The hostile one is the fourth.
PROMPTS = (*OPENINGS[:3], HOSTILE, *OPENINGS[4:])
NEVER = "12"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sets") / "set"
    train(target(PROMPTS), config=replace(CONFIG, training=replace(CONFIG.training, num_updates=4)), seed=1, out=path)
    settings = ["--num-particles", "2", "4", "--num-samples", "16", "--budget", "8"]
    assert main(["evaluate", str(path), "--prompts", "all", *settings]) == 0
    return path


@pytest.fixture(scope="module")
def record(folder: Path) -> Record:
    """What was found, with φ never met at one prompt."""
    found = Record.read(folder, "set")
    nothing = Estimate(-math.inf, -math.inf, -1.25, 40)

    def blind(each: OfPrompt) -> OfPrompt:
        if each.name != NEVER:
            return each
        kls, bounds = each.certificate.divergences, each.certificate.bounds
        unknown = Estimate(math.inf, -math.inf, math.inf, 40)
        return replace(each, certificate=replace(
            each.certificate, divergences=replace(kls, log_Z=nothing, kl_q_target=unknown, kl_target_q=None),
            bounds=tuple(replace(b, lower=nothing) for b in bounds),
        ))  # fmt: skip

    after = replace(found.after, by_prompt=tuple(blind(each) for each in found.after.by_prompt))
    return replace(found, certificates={**found.certificates, "after": after})


@pytest.fixture(scope="module")
def page_of(record: Record, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    save_page([record], path)
    return path


@pytest.fixture
def watched(browser: Browser, page_of: Path) -> Iterator[Watched]:
    opened = Watched.open(browser, page_of)
    yield opened
    assert opened.complaints == []
    assert opened.requests == [page_of.as_uri()]
    opened.page.context.close()


def section(watched: Watched) -> Locator:
    return watched.page.get_by_role("region", name="Prompts")


def heading(watched: Watched, name: str) -> Locator:
    """Of a column; the mark of its order is a part of its name for screen readers, so not by role."""
    return section(watched).locator(":scope > .scroll > table > thead th").filter(has_text=name)


def names(watched: Watched) -> list[str]:
    """Of the rows that are to be seen, in their order."""
    return section(watched).locator("tbody button[aria-expanded]:visible").all_inner_texts()


def test_every_prompt_has_a_row_even_without_scripts(browser: Browser, page_of: Path, record: Record) -> None:
    page = Watched.open(browser, page_of, java_script_enabled=False)
    rows = section(page).locator("tbody tr")
    assert rows.locator("td.text").all_text_contents()[:3] == list(PROMPTS[:3])
    for number, each in enumerate(record.after.by_prompt):
        cells = " ".join(rows.nth(number).inner_text().split())
        kl = each.certificate.divergences.kl_q_target
        assert str(kl) in cells or not kl.is_known
    assert f"φ never met; at most {-1.25:.3f}" in rows.nth(11).inner_text()
    assert section(page).get_by_text("φ never met").count() == 1


@pytest.mark.parametrize(("column", "value"), [("KL(q‖σ)", "kl_q_target"), ("E_q[φ]", "phi"), ("log Z", "log_Z")])
def test_it_is_sorted_by_mouse_and_by_keyboard(watched: Watched, record: Record, column: str, value: str) -> None:
    known = {each.name: getattr(each.certificate.divergences, value).value for each in record.after.by_prompt}
    finite = sorted((name for name in known if math.isfinite(known[name])), key=lambda name: known[name])
    unknown = [name for name in known if not math.isfinite(known[name])]
    assert len({known[name] for name in finite}) > 5, "equal numbers would prove nothing"
    assert bool(unknown) == (value != "phi")
    by = heading(watched, column)
    assert by.get_attribute("aria-sort") == "none"
    by.get_by_role("button").click()
    assert by.get_attribute("aria-sort") == "descending"
    shown = names(watched)
    assert [known[name] for name in shown[: len(finite)]] == [known[name] for name in finite[::-1]]
    assert shown[len(finite) :] == unknown
    by.get_by_role("button").focus()
    watched.page.keyboard.press("Enter")
    assert by.get_attribute("aria-sort") == "ascending"
    shown = names(watched)
    assert [known[name] for name in shown[: len(finite)]] == [known[name] for name in finite]
    assert shown[len(finite) :] == unknown, "what is unknown comes last either way"


def test_names_are_sorted_as_numbers(watched: Watched) -> None:
    by_name = heading(watched, "prompt").get_by_role("button")
    by_name.click()
    assert names(watched) == [str(k) for k in range(1, 13)]
    by_name.click()
    assert names(watched) == [str(k) for k in range(12, 0, -1)]


def test_a_search_leaves_what_it_finds(watched: Watched) -> None:
    search, state = section(watched).get_by_label("Search names and texts"), section(watched).get_by_role("status")
    search.fill("THE ")
    expected = [str(k) for k, text in enumerate(PROMPTS, 1) if "the" in text.lower()]
    assert names(watched) == expected
    assert 0 < len(expected) < 12
    assert state.inner_text() == f"{len(expected)} of 12 prompts"
    search.fill("12")
    assert names(watched) == ["12"]
    search.fill("<img src=x")
    assert names(watched) == ["4"]
    search.fill("no such prompt")
    assert names(watched) == []
    search.fill("")
    assert len(names(watched)) == 12


def test_a_row_opens_to_all_that_is_known(watched: Watched, folder: Path) -> None:
    page, button = watched.page, section(watched).get_by_role("button", name="2", exact=True)
    assert page.locator(".opened").count() == 0
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    inside = page.locator(f"#{button.get_attribute('aria-controls')}")
    found = json.loads((folder / "certificate.json").read_text(encoding="utf-8"))
    kl = as_type(
        Estimate, found["certificates"]["before"]["by_prompt"][1]["certificate"]["divergences"]["kl_q_prior"], "it"
    )
    row = inside.get_by_role("row", name="KL(q‖p₀)")
    assert row.locator("td").first.inner_text() == str(kl)
    assert inside.locator("table").first.get_by_role("row").count() == 8
    page.wait_for_selector(".opened .main-svg")
    rows = [json.loads(line) for line in (folder / "prompt_samples.jsonl").read_text(encoding="utf-8").splitlines()]
    mine = [each for each in rows if each["prompt_name"] == "2"]
    shown = inside.locator(".prompt-samples td.text").evaluate_all(
        "all => all.map(td => [...td.childNodes].filter(x => x.tagName !== 'DETAILS').map(x => x.textContent).join(''))"
    )
    assert sorted(shown) == sorted("".join(each["pieces"]) for each in mine)
    assert len(mine) == 16
    # It stays with its row, and goes with it.
    heading(watched, "E_q[φ]").get_by_role("button").click()
    assert button.evaluate("button => button.closest('tr').nextElementSibling.className") == "opened"
    section(watched).get_by_label("Search names and texts").fill(PROMPTS[5])
    assert inside.is_hidden()
    section(watched).get_by_label("Search names and texts").fill("")
    assert inside.is_visible()
    page.locator("input[name=by][value=log_w]").evaluate("input => input.click()")
    title = inside.locator(".prompt-samples td.text > span").first.get_attribute("title")
    assert (title or "").startswith("log w")
    button.click()
    assert inside.is_hidden()


def test_a_hostile_prompt_is_text(watched: Watched) -> None:
    page = watched.page
    row = section(watched).get_by_role("button", name="4", exact=True)
    assert section(watched).locator("tbody td.text").nth(3).text_content() == HOSTILE
    row.click()
    page.wait_for_selector(".opened .main-svg")
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main b").count() == 0
    assert page.locator("script").count() == 4


def test_a_chat_opens_to_all_that_was_said(browser: Browser, record: Record, tmp_path: Path) -> None:
    said = PromptText("And now?", [("system", "Be <b>kind</b>."), ("user", "Hello"), ("assistant", "Hi")])
    save_page([replace(record, prompts={**record.prompts, "1": said})], tmp_path / "chat.html")
    watched = Watched.open(browser, tmp_path / "chat.html")
    section(watched).get_by_role("button", name="1", exact=True).click()
    assert watched.page.locator(".opened dd").all_text_contents() == ["Be <b>kind</b>.", "Hello", "Hi", "And now?"]
    # Its samples were of another prompt of that name.
    assert "No samples of this prompt" in watched.page.inner_text(".opened")
    assert watched.complaints == []


def test_it_is_read_on_a_phone_and_in_the_dark(browser: Browser, page_of: Path) -> None:
    for scheme in ("light", "dark"):
        watched = Watched.open(browser, page_of, viewport={"width": 360, "height": 740}, color_scheme=scheme)
        section(watched).get_by_role("button", name="3", exact=True).click()
        watched.page.wait_for_selector(".opened .main-svg")
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert watched.complaints == []


def test_250_prompts_are_no_burden(browser: Browser, record: Record, tmp_path: Path) -> None:
    several = 250

    def many(given: tuple[OfPrompt, ...]) -> tuple[OfPrompt, ...]:
        return tuple(replace(given[k % 11], name=f"request {k}") for k in range(several))

    certificates = {name: replace(each, by_prompt=many(each.by_prompt)) for name, each in record.certificates.items()}
    texts = {f"request {k}": PromptText(f"{PROMPTS[k % 11]} {k}") for k in range(several)}
    rows = [
        replace(row, prompt_name=name, prompt=text.text)
        for k, (name, text) in enumerate(texts.items())
        for row in record.prompt_samples
        if row.prompt_name == str(k % 11 + 1)
    ]
    assert len(rows) == 16 * several
    path = tmp_path / "large.html"
    save_page([replace(record, certificates=certificates, prompts=texts, prompt_samples=rows)], path)
    assert path.stat().st_size < 4.9e6
    watched = Watched.open(browser, path)
    assert len(names(watched)) == several
    took = watched.page.evaluate(
        "() => { const start = performance.now();"
        "document.querySelectorAll('.prompts thead button')[3].click();"
        "const search = document.querySelector('.prompts input'); search.value = '7'; search.oninput();"
        "document.body.offsetHeight; return performance.now() - start; }"
    )
    assert took < 2000, "a tenth of this, where nothing else runs"
    assert watched.complaints == []
    print(f"{path.stat().st_size / 1e6:.1f} MB, sorted and searched in {took:.0f} ms")


def test_the_command_says_where_samples_would_come_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "no samples" not in printed
    assert "report.html" in printed


def test_samples_at_one_prompt_say_which(folder: Path) -> None:
    assert main(["sample", str(folder), "--num-samples", "4", "--prompt", "2"]) == 0
    found = Record.read(folder, "set")
    assert list(found.samples) == ["twisted SMC at 2", "base model p₀ at 2"]
    (second,) = [each for each in prompts_of(found) if each.name == "2"]
    assert [len(rows) for rows in second.samples.values()] == [8, 8, 4, 4]
    assert all(len(each.samples) == 2 for each in prompts_of(found) if each.name != "2")
