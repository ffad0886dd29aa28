"""The report, in a real browser where there is one: no errors, no network, hostile texts as text."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Locator, Page

from tests.cases import cases
from tests.report.browsing import HOSTILE, Watched
from twistlm import Run, Target, train
from twistlm.certificates.verdict import verdict
from twistlm.cli import main
from twistlm.cli.sample import MOST_BASE
from twistlm.core import advice
from twistlm.core.advice import coded
from twistlm.core.rng import Rng
from twistlm.potentials import Function
from twistlm.report.page import page_data, resource, save_page
from twistlm.report.record import Record, read_all
from twistlm.runs.experiments import get_preset
from twistlm.runs.folder import SampleRow
from twistlm.sampling.diagnostics import Diagnostics
from twistlm.sampling.resampling import multinomial
from twistlm.sampling.sampler import Sampler

# A name that a folder may have; plotly would read the last part as markup.
FOLDER = "<img src=x onerror='window.hacked = 3'><b>bold"
# As a model may write them.
PIECES = ["<script>", "window.hacked = 4", "</script>", "<img src=x ", "onerror='window.hacked = 5'>", " &lt; 🌟"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run with a hostile prompt, a hostile name, and hostile samples among its own."""
    path = tmp_path_factory.mktemp("runs") / FOLDER
    preset = get_preset("toxicity", "smoke")
    asked = preset.target()
    target = Target(asked.model_name, asked.potential, HOSTILE, 6, eos="ignore")
    config = preset.config("ctl")
    config = replace(config, num_draws=1024, evaluation=replace(config.evaluation, during_training=False))
    run = train(target, config=config, out=path)
    _finish(run)
    return path


@pytest.fixture(scope="module")
def other(folder: Path) -> Path:
    """Another run beside it, of the same target."""
    loaded = Run.load(folder)
    run = train(loaded.target, config=loaded.config, seed=1, out=folder.parent / "other")
    _finish(run)
    return folder.parent / "other"


def _finish(run: Run) -> None:
    assert run.folder is not None
    certificates = {name: run.evaluate((2, 4), num_samples=64, budget=32, before=name == "before", save=False)
                    for name in ("before", "after")}  # fmt: skip
    run.folder.evaluations.add(certificates, {})
    # Resampled at every step, at random: with equal weights a systematic scheme keeps everyone.
    found = run.sample(24, ess_threshold=1.0, resampler="multinomial")
    hostile = replace(found, texts=["".join(PIECES), *found.texts[1:]], pieces=[PIECES, *found.pieces[1:]])
    run.folder.save_samples(hostile, run.base_samples(8))


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    assert main(["report", str(folder)]) == 0
    return folder / "report.html"


@pytest.fixture
def watched(browser: Browser, report: Path) -> Iterator[Watched]:
    opened = Watched.open(browser, report)
    yield opened
    opened.page.context.close()


def see(page: Page, chart: str) -> None:
    """Scroll there, as a reader would, and wait: what is far below is drawn then."""
    page.locator(f'[data-chart="{chart}"]').scroll_into_view_if_needed()
    page.wait_for_selector(f'[data-chart="{chart}"] .main-svg')


def samples(page: Page) -> Locator:
    """Scroll to the samples of SMC."""
    page.locator("#tables").scroll_into_view_if_needed()
    page.wait_for_selector("#tables tbody tr")
    return page.locator("#tables table").first


def test_it_opens_without_errors_or_requests(watched: Watched, report: Path, folder: Path) -> None:
    page = watched.page
    for chart in ("bounds", "kl-target-q", "ess", "genealogy", "weights"):
        see(page, chart)
    samples(page)
    assert watched.complaints == []
    assert watched.requests == [report.as_uri()]
    record = Record.read(folder, "")
    assert page.inner_text(".headline") == verdict(record.after, record.before)[0]
    assert report.stat().st_size < 1.6e6


def test_the_script_that_draws_is_the_one_that_its_page_says() -> None:
    script, about = resource("plotly/plotly-basic.min.js"), resource("plotly/README.md")
    assert hashlib.sha256(script.encode()).hexdigest() in about
    version = re.search(r"plotly\.js \(basic - minified\) v([\d.]+)", script)
    assert version is not None
    assert f"| version | {version[1]} |" in about
    assert f"{len(script.encode()):,} bytes" in about
    assert "MIT License" in resource("plotly/LICENSE")


def test_a_finding_leads_to_what_explains_it(
    browser: Browser, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record.read(folder, "")
    assert record.diagnostics is not None
    # Every particle dies at one step, and training has warned by a hostile text.
    died = torch.zeros_like(record.diagnostics.died)
    died[1] = 1.0
    warned = replace(record.history, warnings=[coded("TW201", f"it overfits {HOSTILE}")])
    record = replace(record, diagnostics=replace(record.diagnostics, died=died), history=warned)
    for address in ("https://docs.example/twistlm/", None):
        monkeypatch.setattr(advice, "site", lambda address=address: address)
        save_page([record], tmp_path / "page.html")
        watched = Watched.open(browser, tmp_path / "page.html")
        found = [each for each in watched.page.locator("#verdict ~ ul li").all() if "A dead step" in each.inner_text()]
        assert len(found) == 1
        assert found[0].inner_text().endswith("[TW403]")
        links = found[0].locator("a")
        assert links.count() == (address is not None)
        if address is not None:
            assert links.get_attribute("href") == "https://docs.example/twistlm/when-it-goes-wrong.html#tw403"
        training = watched.page.locator("#verdict ~ ul li", has_text="In training").inner_text()
        assert training == f"In training: it overfits {HOSTILE} [TW201]"
        assert "twistlm list TW" in watched.page.locator("#verdict ~ .note").first.inner_text()
        assert watched.complaints == []
        watched.page.context.close()


def test_it_is_read_without_scripts(browser: Browser, report: Path, folder: Path) -> None:
    page = Watched.open(browser, report, java_script_enabled=False).page
    after = Record.read(folder, "").after
    assert "KL(σ‖q)" in page.inner_text(".headline")
    assert str(after.divergences.kl_q_target) in page.inner_text("#known ~ .scroll")
    assert HOSTILE in page.inner_text("#asked ~ dl")


def test_one_steps_through_the_genealogy(watched: Watched, folder: Path) -> None:
    page, found = watched.page, Diagnostics.from_dict(json.loads((folder / "diagnostics.json").read_text()))
    tree, n = found.genealogy, found.num_particles

    assert int(found.num_ancestors[0, 0]) < n / 2, "without a genealogy this would prove nothing"

    def expected(t: int) -> dict[str, int]:
        """Particles by text, by the definition."""
        texts: list[str] = [""] * n
        for s in range(t + 1):
            texts = [texts[p] + tree.pieces[s][k] for k, p in enumerate(tree.parents[s].tolist())]
        return {text: texts.count(text) for text in texts}

    def shown() -> dict[str, int]:
        rows = page.locator("#prefixes tbody tr:has(td:nth-child(4))")
        return {row.locator("td").nth(3).text_content() or "": int(row.locator("td").nth(1).inner_text())
                for row in rows.all()}  # fmt: skip

    def at(t: int) -> None:
        state = page.inner_text("#state")
        assert state.startswith(f"Token {t + 1} of 6: ESS {float(found.ess[0, t]):.1f} of {n}")
        assert f"descend from {int(found.num_ancestors[0, t])} of these {n}" in state
        assert (", resampled before it" in state) == bool(found.resampled[0, t])
        assert shown().items() <= expected(t).items()
        assert len(shown()) == min(12, len(expected(t)))

    at(0)
    for t in (1, 2):
        page.keyboard.press("ArrowRight")
        at(t)
    page.get_by_role("button", name="Next token").click()
    at(3)
    page.keyboard.press("ArrowLeft")
    at(2)
    page.get_by_role("slider", name="Token").focus()
    page.keyboard.press("End")
    at(5)
    page.get_by_role("button", name="Next token").click()
    at(5)
    see(page, "genealogy")
    page.wait_for_selector('[data-chart="genealogy"] .shapelayer path', state="attached")
    assert watched.complaints == []


@pytest.mark.parametrize("column", ["weight", "log φ", "log p₀"])
def test_samples_are_sorted_by_mouse_and_by_keyboard(watched: Watched, column: str) -> None:
    page = watched.page
    table = samples(page)
    number = {"weight": 0, "log φ": 1, "log p₀": 2}[column]

    def values() -> list[float]:
        cells = table.locator(f"tbody tr > td:nth-child({number + 1})").all_inner_texts()
        return [float(cell.replace("−", "-").replace("∞", "inf")) for cell in cells]

    heading = table.get_by_role("columnheader", name=column)
    # It comes sorted by weight, the heaviest first.
    assert heading.get_attribute("aria-sort") == ("descending" if column == "weight" else "none")
    if column != "weight":
        heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    down = values()
    assert down == sorted(down, reverse=True)
    assert len(set(down)) > 3, "equal numbers would prove nothing"
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert values() == down[::-1] == sorted(down)


def test_hostile_texts_are_shown_as_text(watched: Watched) -> None:
    page = watched.page
    row = samples(page).locator("tbody tr", has_text="window.hacked = 4")
    assert (row.locator("td.text").text_content() or "").startswith("".join(PIECES))
    row.locator("summary").click()
    row.locator("details td.text").first.wait_for()
    assert row.locator("details td.text").all_text_contents() == PIECES
    assert page.inner_text("h1") == FOLDER
    see(page, "kl-target-q")
    assert page.evaluate("window.hacked") is None
    # Four of our own: the numbers, plotly, the page's two.
    assert page.locator("script").count() == 4
    assert page.locator("main img, main b").count() == 0
    assert watched.complaints == []
    assert len(watched.requests) == 1


def test_no_foreign_script_would_run_and_nothing_be_loaded(watched: Watched) -> None:
    page = watched.page
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'hacked = 6'}))")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"https://example.org/x.png\">')")
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("fetch('https://example.org').then(() => 'loaded', () => 'refused')") == "refused"
    assert any("Content Security Policy" in complaint for complaint in watched.complaints)


def test_tokens_say_how_much_they_moved(watched: Watched, folder: Path) -> None:
    page = watched.page
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    table = samples(page)
    heaviest = max(rows, key=lambda row: row["weight"])
    for by, name in (("log_psi", "log ψ"), ("log_w", "log w")):
        page.locator(f"input[name=by][value={by}]").check()
        spans = table.locator("tbody tr").first.locator("td.text > span")
        for move, title, look in zip(
            heaviest[f"{by}_moves"], spans.evaluate_all("all => all.map(each => each.title)"),
            spans.evaluate_all("all => all.map(each => each.className)"), strict=True,
        ):  # fmt: skip
            assert title.startswith(name)
            assert float(title.removeprefix(name).replace("−", "-")) == pytest.approx(move, abs=0.006)
            assert look == ("down" if round(move, 2) < 0 else "up")
        # Not by colour alone.
        styles = spans.evaluate_all("all => all.map(each => getComputedStyle(each).textDecorationStyle)")
        assert set(styles) <= {"solid", "dotted"}


def test_it_is_read_on_a_phone_and_in_the_dark(browser: Browser, report: Path) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        watched = Watched.open(browser, report, viewport={"width": 360, "height": 740}, color_scheme=scheme)
        page = watched.page
        samples(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert watched.complaints == []
    assert len(grounds) == 2


def test_the_numbers_are_downloaded(watched: Watched, folder: Path) -> None:
    """What the button hands to the browser; the browser's own part has been seen to hang beside a second Chromium."""
    watched.page.evaluate(
        "URL.createObjectURL = (blob) => { window.handed = blob; return 'blob:null/x'; };"
        "HTMLAnchorElement.prototype.click = function () { window.link = this; };"
    )
    watched.page.get_by_role("button", name="Download all numbers").click()
    assert watched.page.evaluate("link.download") == "twistlm-report.json"
    assert watched.page.evaluate("link.href") == "blob:null/x"
    found = json.loads(watched.page.evaluate("handed.text()"))
    assert found == json.loads(json.dumps(page_data(read_all([folder]))))
    kept = json.loads((folder / "certificate.json").read_text())
    assert found["runs"][0]["certificates"]["after"] == kept["certificates"]["after"]


def test_several_runs_share_the_curves_and_are_chosen_among(browser: Browser, folder: Path, other: Path) -> None:
    out = folder.parent / "both.html"
    assert main(["report", str(folder), str(other), "--out", str(out)]) == 0
    watched = Watched.open(browser, out)
    page = watched.page
    assert page.locator(".headline").count() == 2
    for name in (FOLDER, "other"):
        page.get_by_label("Below:").select_option(name)
        text = samples(page).locator("tbody tr td.text").first.text_content() or ""
        record = Record.read(folder.parent / name, name)
        heaviest = max(record.samples["twisted SMC"], key=lambda row: row.weight)
        assert text.startswith(heaviest.text)
    see(page, "kl-target-q")
    legend = page.locator('[data-chart="kl-target-q"] .legendtext').all_text_contents()
    assert legend == [FOLDER, "other"]
    assert (out.with_suffix("") / "other-genealogy.pdf").exists()
    assert watched.complaints == []


def test_500_samples_are_no_burden(browser: Browser, folder: Path, tmp_path: Path) -> None:
    """500 samples of 50 tokens, resampled at every one: what the page weighs, and what is laid out at once."""
    record, generator = Record.read(folder, "large"), torch.Generator().manual_seed(0)
    words = [piece for row in record.samples["base model p₀"] for piece in row.pieces]

    def many(count: int) -> list[SampleRow]:
        moves = torch.randn(count, 50, generator=generator).tolist()
        chosen = torch.randint(len(words), (count, 50), generator=generator).tolist()
        return [
            SampleRow("", "", 1 / count, -1.0, -100.0, [words[k] for k in row], move, move[::-1])
            for row, move in zip(chosen, moves, strict=True)
        ]

    model = Target("stories", Function(len), "Once upon a time", 50, eos="ignore").twisted()
    result = Sampler(model, None, 50, resampler=multinomial, ess_threshold=1.0).smc(
        Rng(0), cases([model.lm.encode("Once upon a time")]), 500
    )
    large = replace(
        record, samples={"twisted SMC": many(500), "base model p₀": many(MOST_BASE)},
        diagnostics=Diagnostics.of([result], model.lm),
    )  # fmt: skip
    save_page([large], tmp_path / "large.html")
    assert (tmp_path / "large.html").stat().st_size < 2.4e6
    page = Watched.open(browser, tmp_path / "large.html").page
    assert page.locator("#tables span").count() == 0, "far below: not laid out yet"
    table = samples(page)
    assert table.locator("tbody tr").count() == 50
    page.get_by_role("button", name="Show all 500").first.click()
    assert table.locator("tbody tr").count() == 500


def test_an_existing_file_is_refused_unless_it_is_the_runs_own(
    folder: Path, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder.parent / "mine.html"
    out.write_text("years of work")
    assert main(["report", str(folder), "--out", str(out)]) == 2
    assert "exists already; replace it with --overwrite" in capsys.readouterr().err
    assert out.read_text() == "years of work"
    (folder.parent / "thesis").mkdir()
    assert main(["report", str(folder), "--out", str(folder.parent / "thesis.html")]) == 2
    assert "thesis exists already" in capsys.readouterr().err
    assert main(["report", str(folder), "--out", str(folder.parent / "thesis"), "--overwrite"]) == 2
    assert "must be the name of a file that ends in .html" in capsys.readouterr().err
    assert main(["report", str(folder), "--out", str(out), "--overwrite"]) == 0
    assert main(["report", str(folder)]) == 0
    # Equal runs are equal pages.
    assert out.read_bytes() == report.read_bytes()
