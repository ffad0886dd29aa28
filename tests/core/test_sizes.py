import pytest

from twistlm.core.sizes import even


@pytest.mark.parametrize("most", [1, 3, 512])
@pytest.mark.parametrize("count", [1, 2, 512, 513, 800, 1025])
def test_parts_are_few_and_equal(count: int, most: int) -> None:
    sizes = [min(even(count, most), count - at) for at in range(0, count, even(count, most))]
    assert sum(sizes) == count
    assert max(sizes) <= most
    assert len(sizes) == -(-count // most)
    assert set(sizes[:-1]) <= {even(count, most)}


def test_of_nothing_there_is_a_step_to_take() -> None:
    assert even(0, 512) == 1
