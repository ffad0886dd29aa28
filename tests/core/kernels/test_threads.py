import threading
import time
from functools import partial

import pytest
import torch

from twistlm.core.kernels.threads import alone, asked, side_by_side, together


@pytest.fixture(autouse=True)
def _three_threads(threads):
    threads(3)


def test_alone_leaves_one_thread_and_together_brings_all_back_for_a_moment() -> None:
    with alone():
        assert torch.get_num_threads() == 1
        with together():
            assert torch.get_num_threads() == 3
        with alone():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_together_outside_changes_nothing() -> None:
    with together():
        assert torch.get_num_threads() == 3


def test_an_error_restores_the_number_of_threads() -> None:
    with pytest.raises(ValueError, match="inside"), alone(), together():
        raise ValueError("inside")
    assert torch.get_num_threads() == 3


def test_all_is_read_anew_each_time() -> None:
    with alone():
        pass
    torch.set_num_threads(2)
    with alone(), together():
        assert torch.get_num_threads() == 2


def test_side_by_side_gives_results_in_order_whoever_ends_first() -> None:
    ended = []

    def piece(number: int) -> int:
        time.sleep(0.05 * (2 - number))
        ended.append(number)
        return number

    assert list(side_by_side(partial(piece, number) for number in range(3))) == [0, 1, 2]
    assert ended == [2, 1, 0]


def test_side_by_side_shares_out_torchs_threads_and_gives_them_back() -> None:
    torch.set_num_threads(4)
    assert list(side_by_side([torch.get_num_threads] * 2)) == [2, 2]
    assert torch.get_num_threads() == 4


def test_side_by_side_is_alone_where_one_thread_is_left() -> None:
    here = threading.get_ident()
    with alone():
        assert list(side_by_side([threading.get_ident] * 2)) == [here, here]
    assert here not in list(side_by_side([threading.get_ident] * 2))
    assert list(side_by_side([threading.get_ident] * 2, when=False)) == [here, here]


@pytest.mark.parametrize("grad", [True, False])
def test_side_by_side_pieces_take_gradients_as_the_caller_does(grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        assert list(side_by_side([torch.is_grad_enabled] * 3)) == [grad] * 3


def test_an_error_of_a_piece_is_the_callers_and_later_pieces_are_left() -> None:
    done = []

    def piece(number: int) -> None:
        time.sleep(0.02)
        if number == 0:
            raise ValueError("piece 0")
        done.append(number)

    with pytest.raises(ValueError, match="piece 0"):
        list(side_by_side(partial(piece, number) for number in range(30)))
    assert len(done) < 29
    assert torch.get_num_threads() == 3


def test_what_is_asked_is_done_by_the_thread_that_waits() -> None:
    here = threading.get_ident()

    def piece(number: int) -> tuple[bool, int]:
        time.sleep(0.01 * (3 - number))
        return threading.get_ident() == here, asked(threading.get_ident)

    assert list(side_by_side(partial(piece, number) for number in range(3))) == [(False, here)] * 3
    # Outside, it is just called.
    assert piece(3) == (True, here)


def test_an_error_of_what_is_asked_is_the_pieces_own() -> None:
    def bad() -> None:
        raise ValueError("asked")

    def piece() -> str:
        try:
            asked(bad)
        except ValueError as error:
            return str(error)
        return ""

    assert list(side_by_side([piece] * 4)) == ["asked"] * 4


def test_that_the_one_who_is_asked_is_told_to_end_ends_all() -> None:
    def told() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(side_by_side([partial(asked, told)] * 4))
    assert torch.get_num_threads() == 3


def test_pieces_that_still_ask_do_not_hold_up_one_who_leaves() -> None:
    ended = []

    def piece(number: int) -> int:
        if number > 0:
            time.sleep(0.05)
            asked(time.monotonic)
            ended.append(number)
        return number

    results = side_by_side(partial(piece, number) for number in range(3))
    assert next(results) == 0
    results.close()
    assert ended == []
    assert torch.get_num_threads() == 3
