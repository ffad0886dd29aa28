"""The machine's arithmetic limit: what a task's matrix products would take at the fastest rate measured here.

    limit = Σ over precisions of (floating-point operations of the products) / (measured rate of a product)

Operations are counted while the task runs (`Counter`): every product of the network, the output layer, attention, the
heads, and of the backward pass where there is one. A rate is the best that one large packed product reaches with the
threads of the run (`rate`), right before the tasks that are timed. The limit says nothing of reading weights, of
elementwise work, or of drawing tokens; a time over it says how much of a task is something else than products.

    python -m benchmarks.suite.arithmetic --threads 2    # the rates alone, as JSON
"""

import argparse
import json
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from twistlm.core.kernels.linear import PackedProduct

# Rows, columns in and columns out of the products of which the fastest counts.
SHAPES = ((512, 1024, 1024), (1024, 1024, 1024), (2048, 2048, 2048))
# Each is repeated for so long; a shared machine has moments without others.
SECONDS = 0.3


class Counter(TorchDispatchMode):
    """Counts the operations of matrix products while it is active, by precision."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: Tally[torch.dtype] = Tally()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in OURS:
            self.operations[args[0].dtype] += OURS[packet](*args, out=out)
        elif (formula := TORCHS.get(packet)) is not None:
            self.operations[args[0].dtype] += formula(*args, **kwargs, out_val=out)
        return out


def _packed(x: Tensor, *others: Any, out: Tensor) -> int:
    return 2 * x.numel() * out.shape[-1]


def _attended(query: Tensor, key: Tensor, value: Tensor, *others: Any, out: Any) -> int:
    return 2 * key.shape[-2] * (query.numel() + int(out[0].numel()))


def _attended_backward(grad: Tensor, query: Tensor, key: Tensor, *others: Any, out: Any) -> int:
    # The weights anew, and two products for each of the two products of the forward pass.
    return 10 * query.numel() * key.shape[-2]


TORCHS: dict[Any, Callable[..., int]] = dict(flop_registry)
# What torch's own table of formulas does not know: operations of the CPU.
OURS: dict[Any, Callable[..., int]] = {
    torch.ops.mkldnn._linear_pointwise: _packed,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attended,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attended_backward,
}


@torch.no_grad()
def rate(dtype: torch.dtype) -> float:
    """Operations per second of the fastest product in `dtype`."""
    best = 0.0
    for rows, k, n in SHAPES:
        x, product = torch.randn(rows, k).to(dtype), PackedProduct(torch.randn(n, k).to(dtype))
        product(x)
        end = time.perf_counter() + SECONDS
        while (start := time.perf_counter()) < end:
            product(x)
            best = max(best, 2 * rows * k * n / (time.perf_counter() - start))
    return best


def rates(dtypes: Iterable[torch.dtype]) -> dict[torch.dtype, float]:
    """`rate` of each."""
    return {dtype: rate(dtype) for dtype in sorted(set(dtypes), key=str)}


def limit(operations: Mapping[torch.dtype, int], measured: Mapping[torch.dtype, float]) -> float:
    """Seconds that so many operations take at the measured rates."""
    return sum(count / measured[dtype] for dtype, count in operations.items())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Operations per second of matrix products on this machine.")
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    found = rates((torch.float32, torch.bfloat16))
    print(json.dumps({str(dtype).removeprefix("torch."): speed for dtype, speed in found.items()}))
