"""The benchmarks run, their record makes sense, and the page agrees with it. How fast anything is, is not tested."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from benchmarks.peers import floor
from benchmarks.suite import arithmetic, curves, limits, memory, methods, models, plots, prompts, table, times
from benchmarks.suite.attention import Stopwatch, split
from benchmarks.suite.main import _start, main
from benchmarks.suite.options import GROUPS, MODELS, PAGE, QUICK, RESULTS, Batch, Options
from benchmarks.suite.record import Curve, Record, Row, load
from benchmarks.suite.tasks import Bench

ROOT = Path(__file__).parents[2]


@pytest.mark.nightly
def test_a_quick_run_of_everything_leaves_a_complete_record(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    main(Options(quick=True, output=output))
    fields: dict[str, Any] = json.loads(output.read_text())
    assert (tmp_path / "bench-per-token.png").exists()
    assert {found["torch"] for found in fields["machines"].values()} == {torch.__version__}
    assert fields["machines"].keys() == set(MODELS)
    assert all({"before", "after"} <= load.keys() for load in fields["load_average"].values())
    _check_which_rows(fields["rows"])
    _check_values(fields["rows"])
    _check_curves(fields["curves"])


def _check_which_rows(rows: list[dict[str, Any]]) -> None:
    expected = {
        (f"{task}_{getattr(QUICK, case.batch)}", case.model, dtype)
        for case in times.CASES
        for task in case.tasks(tuple(GROUPS))
        if not task.startswith("never")
        for dtype in ("fp32", "bf16")
    }
    bundled = [row for row in rows if row["model"] == "stories"]
    sets = [row for row in rows if row["model"] == "chats"]
    assert {(row["task"], row["dtype"]) for row in sets} == {
        (task, dtype)
        for task in ("generate_chats", "chats_mlp", "generate_system", "system_mlp", "different")
        for dtype in ("fp32", "bf16")
    }
    others = [row for row in rows if row["model"] not in ("stories", "chats")]
    assert {(row["name"], row["model"], row["dtype"]) for row in others if row["kind"] == "time"} == expected
    assert {row["task"] for row in bundled if row["kind"] == "update"} == set(methods.UPDATES)
    assert {row["task"] for row in bundled if row["kind"] == "time"} == {
        "generate",
        "base",
        "never_mlp",
        "never_backbone",
    }
    scaling = {row["task"] for row in rows if row["kind"] == "scaling"}
    assert scaling == {"resampling", "different", *(f"growth_{task}" for task in curves.LENGTH_TASKS)}
    assert {row["task"] for row in rows if row["kind"] == "growth"} == {"ctl_mlp", "dpg_mlp"}


def _check_values(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert {"name", "dtype", "ratio", "limit", "median_s", "peak_mb"} <= row.keys()
        if row["kind"] in ("time", "scaling"):
            assert math.isfinite(row["ratio"])
            assert row["ratio"] > 0
            assert row["median_s"] > 0
        if row["kind"] == "memory":
            assert row["peak_mb"] > 0
        if row["kind"] == "time" and row["task"].startswith("generate"):
            assert row["ratio"] == 1.0
        if row["kind"] == "time" and row["task"].startswith("smc"):
            assert 1 / row["particles"] < row["ess"] < 1.0
    peaks = {(row["kind"], row["name"], row["dtype"]): row["peak_mb"] for row in rows if row["model"] == "gpt2"}
    name = f"smc_mlp_{QUICK.short}"
    assert peaks["time", name, "fp32"] == peaks["memory", name, "fp32"]


def _check_curves(found: list[dict[str, Any]]) -> None:
    assert {curve["name"] for curve in found} == {"time_n", "time_t", "time_v", "memory_n"}
    for curve in found:
        assert len(curve["x"]) >= 2
        assert all(len(values) == len(curve["x"]) and None not in values for values in curve["series"].values())


@pytest.mark.nightly
def test_a_group_alone_replaces_its_rows_and_keeps_the_others(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    options = Options(quick=True, output=output, models=("gpt2",), dtypes=("fp32",), only=("large",))
    first = main(options)
    kept = Row("kept_1x1", "gpt2", "fp32", "time", 1.0, None, 1.0, None, "base", 1, 1)
    first.put(kept)
    first.save(output)
    second = main(options)
    assert second.rows[kept.key] == kept
    assert second.rows.keys() == first.rows.keys()
    assert any(row.runs_s != first.rows[key].runs_s for key, row in second.rows.items())


def test_results_of_another_machine_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    foreign = Record({"gpt2": {"cpu": "another"}}, True)
    foreign.put(Row("kept_1x1", "gpt2", "fp32", "time", 1.0, None, 1.0, None, "base", 1, 1))
    foreign.save(output)
    before = output.read_text()
    with pytest.raises(SystemExit, match="another machine"):
        main(Options(quick=True, output=output, models=("gpt2",), dtypes=("fp32",), only=("large",)))
    assert output.read_text() == before
    assert not _start(Options(quick=True, output=output), output).rows
    # Other models are none of its business.
    assert _start(Options(quick=True, output=output, models=("stories",)), output).rows == foreign.rows
    assert _start(Options(redraw=True, output=output), output).rows == foreign.rows


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    record = Record({"gpt2": {"cpu": "one"}}, False)
    record.put(Row("smc_mlp_1x2", "gpt2", "fp32", "time", 0.5, 0.8, 1.0, None, "smc_mlp", 1, 2, (1.0, 2.0), 0.3))
    record.put(Curve("time_n", "gpt2", "fp32", (1, 2), {"generate": (1.0, None)}, "T = 2"))
    record.save(tmp_path / "results.json")
    again = load(tmp_path / "results.json")
    assert again is not None
    assert (again.rows, again.curves) == (record.rows, record.curves)


def test_unknown_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="sampling"):
        Options(only=("smapling",))
    assert Options(only=("sampling,memory", "curves")).groups == ("sampling", "memory", "curves")


@pytest.mark.parametrize(
    ("task", "batch", "dtype", "limit"),
    [
        ("base", "short", "fp32", 0.55), ("smc_tied", "short", "bf16", 0.5), ("smc_backbone", "short", "bf16", 0.75),
        ("smc_mlp", "long", "fp32", 0.7), ("smc_mlp", "large", "bf16", 0.5), ("certificate", "certificate", "fp32", 12),
        ("ctl_tied", "short", "fp32", 1.0), ("dpg_mlp", "short", "bf16", 1.3), ("generate", "short", "fp32", None),
        ("dpg_backbone", "short", "fp32", None),
    ],
)  # fmt: skip
def test_limits_are_those_of_the_issue(task: str, batch: str, dtype: str, limit: float | None) -> None:
    assert limits.of_time(task, batch, dtype) == limit


@pytest.mark.parametrize(
    ("task", "limit"),
    [("ctl_mlp", 1.3), ("rl_mlp", 2.0), ("sixo_backbone", 4.0), ("ppo_mlp", None), ("ppo_backbone", None)],
)
def test_limits_of_updates_are_those_of_the_issue(task: str, limit: float | None) -> None:
    assert limits.of_update(task) == limit


def test_limits_of_sets_of_prompts_are_those_of_the_issue() -> None:
    found = [limits.of_prompts(task) for task in ("chats_mlp", "system_mlp", "different", "generate_chats")]
    assert found == [0.5, 0.35, 1.15, None]


def test_sets_of_prompts_are_read_anew_in_every_run() -> None:
    bench = prompts.Prompts("fp32", Batch(3, 4), 8, quick=True)
    read = []
    bench.lm.module.register_forward_pre_hook(
        lambda module, args, options: read.append(options["input_ids"].numel()), with_kwargs=True
    )
    run = bench.task("different").run
    run()
    first, read[:] = list(read), []
    run()
    assert read == first
    assert sum(map(len, bench.sets["different"])) == pytest.approx(sum(map(len, bench.sets["equal"])), rel=0.03)
    assert len({len(prompt) for prompt in bench.sets["different"]}) == 8


def test_limits_of_memory_are_those_of_the_issue() -> None:
    found = [
        limits.of_memory(*each) for each in (("smc_mlp", "short"), ("smc_mlp", "large"), ("dpg_backbone", "short"))
    ]
    assert found == [600, 1500, 2000]
    assert limits.of_memory("generate", "short") is None


def test_a_row_is_judged_by_what_its_limit_is_on() -> None:
    row = Row("smc_mlp_1x2", "gpt2", "fp32", "time", 0.81, 0.8, 1.0, 5.0, "smc_mlp", 1, 2)
    assert not row.passed
    assert Row(**{**row.__dict__, "kind": "memory", "limit": 6.0}).passed
    assert not Row(**{**row.__dict__, "kind": "growth", "limit": 4.0}).passed


@pytest.mark.parametrize("kind", memory.TWISTS)
def test_twists_are_spread_and_their_weights_vary(kind: str) -> None:
    bench = Bench("gpt2", "fp32", quick=True)
    twist = models.spread_twist(bench.lm, kind, bench.prompt)
    features = (twist.decoder or bench.lm).features([bench.prompt], torch.randint(0, 300, (1, 6)))
    assert float(twist.head(features).detach().std(-1).mean()) == pytest.approx(models.SPREAD, rel=0.5)
    assert 0.1 < (bench.task(f"smc_{kind}", Batch(16, 4)).run() or 0.0) < 0.95


@pytest.mark.parametrize("task", ["generate", "smc_mlp", "smc_backbone"])
def test_attention_is_timed_wherever_it_happens_and_let_go_afterwards(task: str) -> None:
    run = Bench("gpt2", "fp32", quick=True).task(task, Batch(12, 6)).run
    before = {name: ALL_ATTENTION_FUNCTIONS[name] for name in ALL_ATTENTION_FUNCTIONS}
    watch = Stopwatch()
    with watch.running():
        run()
    networks = 2 if task == "smc_backbone" else 1
    assert watch.calls == networks * 2 * 6  # of two layers at six steps
    total, attention = split(run)
    assert 0 < attention < total
    assert {name: ALL_ATTENTION_FUNCTIONS[name] for name in ALL_ATTENTION_FUNCTIONS} == before


def test_attention_within_attention_counts_once() -> None:
    watch = Stopwatch()
    inner = watch.timed(lambda: time.sleep(0.01))
    start = time.perf_counter()
    watch.timed(inner)()
    assert watch.calls == 1
    assert 0.01 <= watch.seconds <= time.perf_counter() - start


def test_a_run_without_attention_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no attention"):
        split(lambda: None)


def test_generate_of_a_model_with_an_end_of_sequence_never_meets_it() -> None:
    bench = Bench("smollm2", "fp32", quick=True)
    output = bench.model.get_output_embeddings()
    # The token that would end a sequence becomes the likeliest of all.
    output.weight.data[2] = output.weight.data.mean(0) * 1000
    bench.task("generate", Batch(4, 6)).run()
    assert bench.model.generation_config.eos_token_id is None
    assert bench.model.config.eos_token_id is None


# --- The page ---


def test_the_page_says_what_the_results_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, content in table.tables(load(RESULTS)).items():
        assert table.between(text, name) == content, f"{name}: run `make bench ARGS=--redraw`"


def test_every_row_that_is_not_met_is_explained_on_the_page() -> None:
    record = load(RESULTS)
    explained = PAGE.read_text(encoding="utf-8").split("<!-- end not met -->")[1].split("\n## ")[0]
    failed = [row.name for row in record.rows.values() if not row.passed] if record is not None else []
    assert [name for name in failed if f"`{name}`" not in explained] == []


def test_tables_mark_what_is_above_its_limit() -> None:
    machine = dict.fromkeys(("cpu", "cores", "threads", "system", "python", "torch", "transformers"), "?")
    record = Record({"gpt2": {**machine, "memory_gb": 1.0, "omp_wait_policy": None}}, False)
    record.put(Row("smc_mlp_100x20", "gpt2", "fp32", "time", 0.5, 0.8, 1.0, None, "smc_mlp", 100, 20))
    record.put(Row("smc_mlp_100x20", "gpt2", "bf16", "time", 0.6, 0.5, 1.0, None, "smc_mlp", 100, 20))
    found = table.tables(record)
    assert "| 0.50 (≤ 0.80) |" in found["times"]
    assert "| **0.60 (≤ 0.50)** |" in found["times"]
    assert "`smc_mlp_100x20` gpt2 bf16" in found["not met"]
    assert "fp32" not in found["not met"]


def test_replacing_between_markers_is_repeatable_and_needs_them() -> None:
    text = "a\n<!-- times -->\nold\n<!-- end times -->\nb\n"
    once = table.replaced(text, "times", "new\nlines")
    assert once == "a\n<!-- times -->\nnew\nlines\n<!-- end times -->\nb\n"
    assert table.replaced(once, "times", "new\nlines") == once
    with pytest.raises(ValueError, match="markers"):
        table.replaced("nothing", "times", "new")


def test_pictures_skip_what_was_not_measured(tmp_path: Path) -> None:
    record = Record({}, False)
    record.put(Curve("time_t", "gpt2", "bf16", (1, 2), {"generate": (1.0, None), "smc_mlp": (0.5, None)}, "N = 1"))
    paths = plots.plot(record, tmp_path)
    assert [path.name for path in paths] == ["bench-time-t-bf16.png", "bench-per-token-bf16.png"]
    assert all(path.exists() for path in paths)


def test_operations_of_products_are_counted_as_they_run() -> None:
    """Base sampling on a tiny Llama does exactly what the formula for peers says that it needs at least."""
    bench = Bench("smollm2", "fp32", quick=True)
    config = {**bench.model.config.to_dict(), "head_dim": bench.model.config.head_dim}
    run = bench.task("base", Batch(12, 6)).run
    run()  # the prompt is remembered from here on
    with arithmetic.Counter() as counter:
        drawn = run()
    assert drawn is None
    assert counter.operations.keys() == {torch.float32}
    made = counter.operations[torch.float32]
    whole, prompt = floor.operations(config, bench.prompt.numel(), 12, 6), floor.operations(config, 8, 1, 1)
    distribution = 2 * config["hidden_size"] * config["vocab_size"]
    assert 0.9 * (whole - prompt + distribution) < made <= whole - prompt + distribution


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kind_of_product_counts(dtype: torch.dtype) -> None:
    x, weight = torch.randn(2, 3, 5, 4, dtype=dtype, requires_grad=True), torch.randn(4, 7, dtype=dtype)
    with arithmetic.Counter() as counter:
        (x @ weight).sum().backward()
    assert counter.operations == {dtype: 2 * 30 * 4 * 7 * 2}
    with arithmetic.Counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()
    assert counter.operations == {dtype: 6 * 5 * 5 * 4 * (2 + 2 + 10)}


def test_the_limit_adds_up_over_precisions() -> None:
    operations = {torch.float32: 300, torch.bfloat16: 400}
    assert arithmetic.limit(operations, {torch.float32: 100.0, torch.bfloat16: 200.0}) == 5.0
    assert arithmetic.rates([torch.float32, torch.float32]).keys() == {torch.float32}
    row = Row("base_1x2", "gpt2", "fp32", "time", 1.0, None, 3.0, None, "base", 1, 2, limit_s=2.0)
    assert row.times_limit == 1.5
