"""Several processes that do one piece of work together, as `torchrun` or `accelerate launch` have started them.

All run the same program. What must happen once (drawing, writing) the first process does for all; what costs most (a
network's passes over given sequences) each does for its own rows, and all get the rows of all. The work of one process
alone is the same code, in which nothing is sent.

How this process was started stands in the environment, which the command line reads before it imports torch.
"""

import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from twistlm.core.errors import ConfigError, ProcessError, TwistError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

# While one process draws the others wait, and that may take as long as it takes: a process that dies is noticed at
# once by its connections, not by silence.
PATIENCE = timedelta(days=30)


def _number(name: str, default: int) -> int:
    given = os.environ.get(name, "")
    return int(given) if given.isdecimal() else default


def launched() -> bool:
    """Whether this is one of several processes that a launcher has started together."""
    return _number("WORLD_SIZE", 1) > 1


def is_first() -> bool:
    """Whether this process speaks for all, and writes: the first of several, or the only one."""
    return _number("RANK", 0) == 0


def own_device(name: str) -> str:
    """The device that `name` means to this process: "cuda" is a GPU of its own, if there are several processes."""
    return f"cuda:{_number('LOCAL_RANK', 0)}" if name == "cuda" and launched() else name


def ends_first() -> bool:
    """Whether no other process has ended with an error before: one line says why all end, and not one of each."""
    from torch import distributed

    if not (launched() and distributed.is_initialized()):
        return is_first()
    store: Any = distributed.distributed_c10d._get_default_store()
    try:
        return bool(store.add("twistlm.ended", 1) == 1)
    except RuntimeError:
        # The process that kept it has gone without a word.
        return True


class Processes:
    """The processes of one piece of work, seen from one of them.

    Attributes:
        count: how many there are.
        rank: which of them this is, from 0.
    """

    def __init__(self, count: int = 1, rank: int = 0) -> None:
        self.count, self.rank = count, rank

    @staticmethod
    def joined() -> "Processes":
        """Those that a launcher has started, once they have found each other; one alone if none has.

        Raises:
            ConfigError: a launcher was asked for several and has started one.
        """
        if not launched():
            if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_ADDR" in os.environ:
                raise ConfigError(
                    "`accelerate launch --cpu` starts one process, however many were asked for; on CPUs start several "
                    "by `accelerate launch --multi_gpu --num_processes 2 …` or `torchrun --nproc-per-node 2 …`"
                )
            return Processes()
        from accelerate import PartialState
        from torch import cuda

        on_gpu = cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true"
        backend = {"backend": "cuda:nccl,cpu:gloo"} if on_gpu else {}
        with _ends():
            state = PartialState(cpu=not on_gpu, timeout=PATIENCE, **backend)
        if not is_first():
            # The first says it for all.
            logging.getLogger("twistlm").setLevel(logging.ERROR)
        return Processes(state.num_processes, state.process_index)

    @staticmethod
    def leave() -> None:
        """Close the connections to the others, if there are any."""
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; `make` runs in no other. A deliberate error is raised in all.

        Raises:
            ProcessError: another process has ended.
        """
        if self.count == 1:
            return make()
        outcome: tuple[T | None, TwistError | None] = None, None
        if self.is_first:
            try:
                outcome = make(), None
            except TwistError as error:
                outcome = None, error
        made, refusal = _broadcast(outcome, self.is_first)
        if refusal is not None:
            raise refusal
        return made  # type: ignore[return-value]

    def own(self, count: int) -> "Tensor":
        """Which of `count` rows this process works on: equally many everywhere, the last row standing in for none."""
        import torch

        share = -(-count // self.count)
        return torch.arange(self.rank * share, (self.rank + 1) * share).clamp_max(count - 1)

    def gathered(self, rows: "Tensor", count: int) -> "Tensor":
        """All `count` rows, of which each process has those that `own` names; gradient flows to these alone.

        All processes compute the same loss of all rows, so each has the whole gradient of its own.

        Raises:
            ProcessError: another process has ended.
        """
        if self.count == 1:
            return rows
        import torch

        own = rows.detach().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.count)]
        with _ends():
            torch.distributed.all_gather(parts, own)
        parts[self.rank] = rows
        return torch.cat(parts)[:count]

    def sum_gradients(self, parameters: Sequence["Tensor"]) -> None:
        """Make each parameter's gradient the sum of what every process has; none where none has any.

        Raises:
            ProcessError: another process has ended.
        """
        if self.count == 1:
            return
        import torch

        # A part of a network that no row of one process went through may have served those of another.
        has = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        with _ends():
            torch.distributed.all_reduce(has)
            for parameter, some in zip(parameters, has.tolist(), strict=True):
                if some:
                    parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                    torch.distributed.all_reduce(parameter.grad)


ALONE = Processes()


def _broadcast(value: T, is_first: bool) -> T:
    """The first process's value, with its tensors on this one's device."""
    import torch

    buffer = io.BytesIO()
    if is_first:
        torch.save(value, buffer)
    sent = [buffer.getvalue()]
    with _ends():
        torch.distributed.broadcast_object_list(sent, 0, device=torch.device("cpu"))
    if is_first:
        return value
    # It comes from a process of the same work, not from a file.
    return torch.load(io.BytesIO(sent[0]), _here, weights_only=False)  # type: ignore[no-any-return]


def _here(storage: Any, location: str) -> Any:
    return storage.cuda() if location.startswith("cuda") else storage


@contextmanager
def _ends() -> Iterator[None]:
    """Say what a broken connection means."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessError(
            "another process of this work has ended, and without it the work cannot go on; --resume continues what was "
            "saved"
        ) from error
