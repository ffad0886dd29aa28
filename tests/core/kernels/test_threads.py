import pytest
import torch

from twistlm.core.kernels.threads import alone, together


@pytest.fixture(autouse=True)
def _three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


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
