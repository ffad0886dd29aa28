"""Three tiers of tests: fast (`make test`), slow (with them `make test-all`) and nightly (`make test-nightly`).

A test is slow if it took more than `SLOW` CPU seconds when `make durations` last ran, or if it needs what `make test`
does not install or make (`MORE`, `COSTLY`). Nightly are those that are marked so: they take long by nature, or a
cheaper test stands for them.
"""

import json
import os
from collections.abc import Generator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

TESTS = Path(__file__).parent
RECORD = TESTS / "durations.json"
# CPU seconds above which a test is slow, and those that --limit allows one of the fast tier. They are apart because
# machines differ in speed by a factor of two.
SLOW, LIMIT = 2.0, 5.0
# Tests below this are not recorded.
LEAST = 0.5
# Files that need packages which `make test` does not install: Ray, TRL, Inspect, a server of S3, a browser, Jupyter.
MORE = (
    "core/test_places.py",
    "docs/test_pages.py",
    "examples/test_integrations.py",
    "examples/test_notebook.py",
    "integrations/test_inspect.py",
    "integrations/test_trl.py",
    "report/test_page.py",
    "report/test_prompts_page.py",
    "runs/test_engines.py",
    "runs/test_same_engines.py",
)
# Fixtures that cost more than any fast test: a browser, and the conversion of SmolLM2's weights.
COSTLY = {"browser", "smollm2"}


def read() -> dict[str, float]:
    """CPU seconds of each recorded test, by its id."""
    kept = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    return {f"{file}::{name}": seconds for file, tests in kept.items() for name, seconds in tests.items()}


def write(seconds: Mapping[str, float]) -> None:
    """Record the CPU seconds of tests that took at least `LEAST`."""
    kept: dict[str, dict[str, float]] = {}
    for test, spent in sorted(seconds.items()):
        if spent >= LEAST:
            file, _, name = test.partition("::")
            kept.setdefault(file, {})[name] = round(spent, 1)
    RECORD.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--record", action="store_true", help="write the CPU seconds of each test to tests/durations.json")
    group.addoption(
        "--limit", action="store_true", help=f"fail if a test of the fast tier takes over {LIMIT:g} s of CPU"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"slow: not of the fast tier: over {SLOW:g} s of CPU, or needs more packages")
    config.addinivalue_line("markers", "nightly: takes long by nature, or a cheaper test stands for it")
    config.pluginmanager.register(Tiers(config))
    if "PYTEST_XDIST_WORKER" in os.environ:
        # What nearly every test needs would count for the first one.
        import tests.preloaded  # noqa: F401


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    needs_more = collection_path.is_relative_to(TESTS) and str(collection_path.relative_to(TESTS)) in MORE
    return True if needs_more and "not slow" in config.option.markexpr else None


class Tiers:
    """Marks slow tests, measures all, and acts on what was measured when all are done."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.measured: dict[str, float] = {}
        self.too_slow: dict[str, float] = {}
        self.began = self.shared = 0.0
        self.sharing = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        recorded = read()
        for item in items:
            needs_more = str(item.path.relative_to(TESTS)) in MORE or COSTLY & {*getattr(item, "fixturenames", ())}
            if needs_more or recorded.get(item.nodeid, 0.0) > SLOW:
                item.add_marker(pytest.mark.slow)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, Any, Any]:
        self.began, self.shared = cpu_seconds(), 0.0
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """What several tests share is none's."""
        if fixturedef.scope == "function" or self.sharing:
            return (yield)
        self.sharing, began = True, cpu_seconds()
        try:
            return (yield)
        finally:
            self.sharing = False
            self.shared += cpu_seconds() - began

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "teardown":
            is_fast = not any(item.get_closest_marker(tier) for tier in ("slow", "nightly"))
            report.user_properties.append(("cpu", (cpu_seconds() - self.began - self.shared, is_fast)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            seconds, is_fast = dict(report.user_properties)["cpu"]
            self.measured[report.nodeid] = seconds
            if is_fast and seconds > LIMIT:
                self.too_slow[report.nodeid] = seconds

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if "PYTEST_XDIST_WORKER" in os.environ:
            return
        if self.config.getoption("--record"):
            files = {test.partition("::")[0] for test in self.measured}
            kept = {test: spent for test, spent in read().items() if test.partition("::")[0] not in files}
            write(kept | self.measured)
        if self.config.getoption("--limit") and self.too_slow and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.config.getoption("--limit"):
            for test, seconds in self.too_slow.items():
                terminalreporter.write_line(
                    f"{test} took {seconds:.1f} s of CPU, and the fast tier allows {LIMIT:g}: shrink it, or "
                    "let `make durations` record it"
                )


def cpu_seconds() -> float:
    """CPU seconds of this process and of all that it has started, whether they have ended or not."""
    me = psutil.Process()
    total = 0.0
    for process in (me, *me.children(recursive=True)):
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total
