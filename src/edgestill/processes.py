"""The processes of one launch: who this one is, and what passes between them. The only place that knows accelerate.

A process that was launched alone imports nothing here, and what it asks of `ALONE` costs nothing.
"""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from edgestill.errors import UserError, first_line

if TYPE_CHECKING:  # neither may be loaded before a verb needs it
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

T = TypeVar("T")
_SIZE = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
_LOCAL_RANK = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "LOCAL_RANK")
_PATIENCE = timedelta(days=1)  # the others wait while process 0 reads the test set, ranks, or validates


class CommonError(UserError):
    """A mistake that all processes of a launch end with; it is told once a machine."""


@dataclass(frozen=True)
class Processes:
    """This process among the `count` of its launch, `here` of them on this machine, and the device that it was given.

    What sums, gathers or tells must be called by all of them, in the same order.
    """

    rank: int = 0
    count: int = 1
    here: int = 1
    device: str = ""

    @property
    def main(self) -> bool:
        """Whether this is process 0, which alone writes, prints and evaluates."""
        return self.rank == 0

    def rows(self, size: int, pieces: int = 1) -> "slice | NDArray[np.int64]":
        """The rows of a batch of `size` that are this process's: its share of each of the batch's pieces.

        >>> Processes(rank=1, count=2).rows(7, pieces=2)
        array([2, 3, 6])
        """
        if self.count == 1:
            return slice(None)
        import numpy as np

        shares = [np.array_split(piece, self.count)[self.rank] for piece in np.array_split(np.arange(size), pieces)]
        return np.concatenate(shares)

    def sum_(self, tensors: "Sequence[Tensor]") -> None:
        """Replaces each tensor by its sum over the processes, which has the same bits on all: one exchange a dtype."""
        if self.count == 1:
            return
        import torch

        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            chosen = [tensor.detach() for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in chosen])
            with _exchange():
                torch.distributed.all_reduce(flat)
            sums = torch.split(flat, [tensor.numel() for tensor in chosen])
            for tensor, summed in zip(chosen, sums, strict=True):
                tensor.copy_(summed.view(tensor.shape))

    def total(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Sums of whole numbers over the processes."""
        if self.count == 1:
            return tuple(numbers)
        import torch

        summed = torch.tensor(numbers, device=self.device)
        self.sum_([summed])
        return tuple(summed.tolist())

    def gather(self, tensor: "Tensor") -> "Tensor":
        """A tensor of one shape from every process, stacked in order of rank."""
        import torch

        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        with _exchange():
            torch.distributed.all_gather(parts, tensor)
        return torch.stack(parts)

    def equal(self, tensors: "Sequence[Tensor]") -> None:
        """Gives all processes the tensors of process 0."""
        if not self.main:
            for tensor in tensors:
                tensor.detach().zero_()
        self.sum_(tensors)

    def own_randomness(self) -> None:
        """From one common state of torch's random numbers, another one for each process; process 0 keeps it."""
        if not self.main:
            import torch

            torch.manual_seed(int(torch.randint(2**62, ())) + self.rank)

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives on process 0, the only one that does it, for all. What it raises there ends all of them."""
        if self.count == 1:
            return work()
        import torch

        told: list[Any] = [None, None]
        raised: BaseException | None = None
        if self.main:
            try:
                told[0] = work()
            except BaseException as error:  # noqa: BLE001  # raised below, when the others know
                raised, told[1] = error, "" if isinstance(error, KeyboardInterrupt) else first_line(error)
        with suppress(UserError) if raised else _exchange():
            torch.distributed.broadcast_object_list(told, src=0)
        if raised is not None:
            raise raised
        value, mistake = told
        if mistake is not None:
            raise CommonError(mistake) if mistake else KeyboardInterrupt
        done: T = value
        return done

    def agree(self, work: Callable[[], T]) -> T:
        """What `work` gives, done by each process; process 0 goes ahead, so that the others find what it cached.

        A UserError of one of them ends all.
        """
        if self.count == 1:
            return work()
        import torch

        done: list[T] = []
        mistakes: list[str | None] = [None] * self.count
        for turn in (self.main, not self.main):
            mine: str | None = None
            if turn:
                try:
                    done.append(work())
                except UserError as error:
                    mine = str(error)
            with _exchange():
                torch.distributed.all_gather_object(mistakes, mine)
            for mistake in mistakes:
                if mistake is not None:
                    raise CommonError(mistake)
        return done[0]


ALONE = Processes()


def launched() -> int:
    """How many processes the launcher said it starts, 1 without one.

    UserError for `accelerate launch --cpu --num_processes 2`, which without mpirun starts a single process.
    """
    for name in _SIZE:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1") and "MASTER_PORT" in os.environ:
        raise UserError(
            "accelerate launch --cpu starts a single process, however many are asked for; "
            "several are started by: torchrun --nproc-per-node 2 -m edgestill run …"
        )
    return 1


def connect(device: str) -> Processes:
    """This process among those of its launch, once all of them are there; ALONE where there is no other.

    `device` is the recipe's: auto, cpu or cuda; each process gets a GPU of its own, or all of them the CPU.
    """
    if launched() == 1:
        return ALONE
    with met_by_all():
        return _connect(device)


def _connect(device: str) -> Processes:
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise UserError(f"several processes need accelerate: pip install 'edgestill[accelerate]' ({error})") from error
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"train.device must be auto, cpu or cuda with several processes; {device!r} came")
    asked_for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    cpu = device == "cpu" or (device == "auto" and (asked_for_cpu or not torch.cuda.is_available()))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", launched()))
    if not cpu and here > torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        raise UserError(f"{here} processes need as many GPUs, {gpus} came: start fewer, or set train.device=cpu")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of threads, which the recipe sets
            state = PartialState(cpu=cpu, timeout=_PATIENCE)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(f"the processes of this launch do not find each other: {first_line(error)}") from error
    return Processes(state.process_index, state.num_processes, here, str(state.device))


def alone() -> None:
    """UserError where a launcher started several processes for what one does."""
    if launched() > 1:
        raise CommonError(f"only run, train and capture take several processes; {launched()} were started: start one")


@contextmanager
def met_by_all() -> Iterator[None]:
    """Around work that every process of a launch does alike: its UserError is told once."""
    try:
        yield
    except UserError as error:
        if launched() == 1 or isinstance(error, CommonError):
            raise
        raise CommonError(str(error)) from error


def tells(error: BaseException) -> bool:
    """Whether this process prints the mistake or interruption that it ends with."""
    common = isinstance(error, CommonError | KeyboardInterrupt)
    return not common or all(os.environ.get(name, "0") == "0" for name in _LOCAL_RANK)


def leave(code: int) -> int:
    """The exit code. One of several processes ends here and now: the ordinary end of the interpreter would abort where
    the other side of a connection has gone already."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


@contextmanager
def _exchange() -> Iterator[None]:
    """Around what needs the others: that one of them is gone is a mistake which that one has told, if it could."""
    try:
        yield
    except RuntimeError as error:
        raise CommonError(
            f"another process of this launch has ended: {first_line(error).partition('. ')[0]}"
        ) from error
