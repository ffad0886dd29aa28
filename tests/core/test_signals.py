"""Being told to end: at once, or when what is held has ended; a second time at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest

from twistlm.core import signals
from twistlm.core.signals import STOPS, Terminated, held, terminable

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def no_two_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME", 0.0)


@pytest.fixture(params=BOTH)
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    before = [signal.getsignal(each) for each in BOTH]
    yield request.param
    assert [signal.getsignal(each) for each in BOTH] == before


def tell(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def stopped(work: Callable[[], None], arranged: AbstractContextManager[None] | None = None) -> BaseException:
    """What the work is stopped by, where signals may stop it."""
    try:
        with terminable(*BOTH) if arranged is None else arranged:
            work()
    except STOPS as error:
        return error
    raise AssertionError("it went on")


def test_at_once_where_nothing_is_held(number: signal.Signals) -> None:
    def work() -> None:
        tell(number)
        raise AssertionError("it went on")

    assert type(stopped(work)) is (KeyboardInterrupt if number == signal.SIGINT else Terminated)


def test_not_in_a_finaliser_which_would_swallow_it(number: signal.Signals) -> None:
    done = []

    class Ends:
        def __del__(self) -> None:
            tell(number)
            done.append("finaliser")

    def work() -> None:
        ends = Ends()
        del ends
        threading.Event().wait(10.0)
        done.append("after")

    assert type(stopped(work)) is (KeyboardInterrupt if number == signal.SIGINT else Terminated)
    assert done == ["finaliser"]


def test_what_is_held_ends_first(number: signal.Signals) -> None:
    done = []

    def work() -> None:
        with held():
            with held():
                tell(number)
                done.append("inner")
            done.append("outer")
        done.append("after")

    stopped(work)
    assert done == ["inner", "outer"]


def test_an_error_in_what_is_held_does_not_swallow_it(number: signal.Signals) -> None:
    def work() -> None:
        with held():
            tell(number)
            raise ValueError("something else")

    assert isinstance(stopped(work).__context__, ValueError)


@pytest.mark.parametrize(("same", "expected"), [(0.0, ["first"]), (60.0, ["first", "second"])])
def test_a_second_one_does_not_wait_but_what_a_group_and_its_leader_are_told_is_one(
    same: float, expected: list[str], number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "SAME", same)
    done = []

    def work() -> None:
        with held():
            tell(number)
            done.append("first")
            tell(number)
            done.append("second")
        done.append("after")

    stopped(work)
    assert done == expected


def test_a_worker_is_told_once() -> None:
    done = []

    def work() -> None:
        with held():
            for _ in range(3):
                tell(signal.SIGTERM)
            done.append("held")

    stopped(work, terminable(signal.SIGTERM, once=True))
    assert done == ["held"]


def test_where_nobody_has_arranged_it_nothing_is_held() -> None:
    done = []

    def work() -> None:
        with held():
            tell(signal.SIGINT)
            done.append("held")

    # What is started in the background by a shell has Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stopped(work, nullcontext())
    finally:
        signal.signal(signal.SIGINT, before)
    assert not done


def test_a_thread_is_left_alone() -> None:
    done = []

    def work() -> None:
        with terminable(*BOTH), held():
            done.append(signal.getsignal(signal.SIGTERM))

    with terminable(*BOTH):
        installed = signal.getsignal(signal.SIGTERM)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert done == [installed]
