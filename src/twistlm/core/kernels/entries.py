"""Entries of a table by their numbers, with a gradient that is the same bit for bit every time.

On the CPU the gradient of `table[index]` is summed by several threads at once, in whatever order they come: of 20
gradients of 34,000 entries by two threads 20 differed. That of `index_select` is not, and takes half the time. On a
GPU it is the other way round (torch's documentation of `use_deterministic_algorithms`).
"""

from torch import Tensor


def entries(table: Tensor, index: Tensor) -> Tensor:
    """`table[index]`: rows [..., k] of a table [V, k], or entries [...] of one [V], at `index` [...]."""
    if table.device.type != "cpu":
        return table[index]
    return table.index_select(0, index.flatten()).view(*index.shape, *table.shape[1:])


def add_entries(table: Tensor, index: Tensor, values: Tensor) -> None:
    """`table[index] += values` [n, …] in place, an index as often as it comes, without gradient."""
    if table.device.type != "cpu":
        table.index_put_((index,), values, accumulate=True)
    else:
        table.index_add_(0, index, values)
