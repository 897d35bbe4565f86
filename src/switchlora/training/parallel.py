"""Several processes in one run: `--parallel ddp|fsdp`, under torchrun or accelerate launch; none: one process.

Every process runs the same program on its share of each batch. The first one (rank 0) alone talks, writes and judges
what is on disk; what it finds there, a mistake of the user included, it tells the others, so that all stop together
and the message appears once. What is summed over ranks is so little (a loss, a flag) that it costs nothing beside the
gradients, which are DDP's and FSDP2's business.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from switchlora.errors import Preempted, ProcessLostError, UserError
from switchlora.machine.devices import LAUNCH, LaunchedRank, ranks_from_environment
from switchlora.shards import Ranks
from switchlora.training.options import PretrainOptions
from switchlora.training.strategies import check_strategy, share_of_batch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
TIMEOUT = datetime.timedelta(minutes=60)  # the first rank may be reading data while the others wait


@dataclass(frozen=True)
class Processes:
    """Those of one run. strategy: none, ddp or fsdp; rank: which one this is; world_size: how many; mesh: fsdp's."""

    strategy: str = "none"
    rank: int = 0
    world_size: int = 1
    mesh: "DeviceMesh | None" = None
    device: torch.device = field(default=torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this one talks and writes."""
        return self.rank == 0

    @property
    def sharing(self) -> Ranks | None:
        """Those that share parameters out among them."""
        return None if self.mesh is None else Ranks(self.mesh, 0)

    def own_share(self, tokens: Tensor) -> Tensor:
        """This process's sequences of a batch (batch, length)."""
        return tokens.chunk(self.world_size)[self.rank]

    def mean(self, number: Tensor) -> Tensor:
        """The mean over all of one number of each."""
        return self.sum(number) / self.world_size

    def sum(self, number: Tensor) -> Tensor:
        """The sum over all of one number of each."""
        if self.world_size == 1:
            return number
        total = number.detach().to(self.device, copy=True)
        torch.distributed.all_reduce(total)
        return total

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each is so on one of them at least."""
        return tuple(bool(total) for total in self.sum(torch.tensor(flags, dtype=torch.float32)).tolist())

    def collect(self, value: T) -> list[T]:
        """The values of all, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def on_first(self, function: Callable[[], T]) -> T:
        """What the first one gets of `function`, which the others do not call.

        Raises:
            Exception: the first one's own; SystemExit: on the others then, with its exit code, in silence.
        """
        if self.world_size == 1:
            return function()
        if not self.is_first:
            told: T = self._told(None)
            return told
        try:
            value = function()
        except BaseException as error:
            self._told((None, getattr(error, "exit_code", 1)))
            raise
        self._told((value, None))
        return value

    def on_each(self, function: Callable[[], T]) -> T:
        """What `function` gives each of them, which all call; if it fails on one, all of them fail with its message.

        Raises:
            Exception: this one's own; UserError, Preempted: another one's.
        """
        if self.world_size == 1:
            return function()
        failure: Exception | Preempted | None = None
        found: list[T] = []
        try:
            found.append(function())
        except (Exception, Preempted) as error:
            failure = error
        said = None if failure is None else (" ".join(str(failure).split()), isinstance(failure, Preempted))
        all_said = [one for one in self.collect(said) if one is not None]
        if failure is not None:
            raise failure
        for message, preempted in all_said:
            raise Preempted(message) if preempted else UserError(message)
        return found[0]

    def _told(self, said: tuple[Any, int | None] | None) -> Any:
        message: list[Any] = [said]
        torch.distributed.broadcast_object_list(message, src=0)
        value, exit_code = message[0]
        if exit_code is not None and not self.is_first:
            raise SystemExit(exit_code)
        return value


@contextlib.contextmanager
def processes(options: PretrainOptions, device: torch.device) -> Iterator[Processes]:
    """The processes of a run that was checked, ready to talk to each other.

    Raises:
        ProcessLostError: one of them has ended while this one waited for it.
    """
    from transformers.utils import logging as transformers_logging

    ranks = ranks_from_environment(os.environ)
    if options.parallel == "none":
        yield Processes(device=device)
        return
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT, **_meeting(ranks)
    )
    try:
        mesh = None
        if options.parallel == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh

            mesh = init_device_mesh(device.type, (ranks.world_size,))
        if ranks.rank > 0:
            transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the first one says it
        yield Processes(str(options.parallel), ranks.rank, ranks.world_size, mesh, device)
    except RuntimeError as error:
        if not (isinstance(error, torch.distributed.DistError) or "by peer" in str(error)):
            raise
        raise ProcessLostError(
            "another process of this run has ended; the same command goes on from the last checkpoint"
        ) from error
    finally:
        torch.distributed.destroy_process_group()


def _meeting(ranks: LaunchedRank) -> dict[str, Any]:
    """Where processes meet, if not where torch would.

    The store of torchrun outlives a restart of its processes, with the addresses of those before: who comes first
    reads them, and waits for the dead (torch 2.13; pytorch issue 135712). So each start of a single torchrun gets its
    own corner of it. Where several work together their counts of restarts differ, and it stays as torch has it.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or environment.get("GROUP_WORLD_SIZE") != "1":
        return {}
    store = TCPStore(
        environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), ranks.world_size, is_master=False, timeout=TIMEOUT
    )
    corner = f"start {environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    own_store = PrefixStore(corner, store)
    return {"store": own_store, "rank": ranks.rank, "world_size": ranks.world_size}


def check_launch(options: PretrainOptions, environment: Mapping[str, str]) -> None:
    """Refuse a strategy that the launch or the other options cannot give.

    Raises:
        UserError: names the option, the rule and the way out.
    """
    num, strategy = ranks_from_environment(environment).world_size, options.parallel
    if environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise UserError("DeepSpeed is not supported: it would flatten the factors; launch without it, --parallel fsdp")
    if strategy != "fsdp" and environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError("accelerate's FSDP would be left out without a word; launch without it, --parallel fsdp")
    if strategy == "none" and num > 1:
        raise UserError(
            f"--parallel none: {num} processes would each train alone; use ddp or fsdp, or start one process"
        )
    if strategy != "none" and "RANK" not in environment:
        raise UserError(f"--parallel {strategy}: needs processes; start it with {LAUNCH} --parallel {strategy} ...")
    share_of_batch(options, num)
    check_strategy(options, str(strategy), num)
    if strategy != "none" and not (environment.get("MASTER_ADDR") and environment.get("MASTER_PORT")):
        raise UserError(f"MASTER_ADDR, MASTER_PORT: say where processes meet, and are not set; start with {LAUNCH}")


def no_sync(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Where DDP shall not sum gradients yet, for a later micro-batch of the same step will."""
    wrapped = getattr(model, "_orig_mod", model)  # by torch.compile
    if isinstance(wrapped, nn.parallel.DistributedDataParallel):
        return wrapped.no_sync()
    return contextlib.nullcontext()
