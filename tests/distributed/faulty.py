"""A method file (`--method`) that trains as switchlora does and, once, does something bad.

    FAULT=WHAT:N:RANK   the N-th time that this process comes to WHAT, on this rank
    FAULT=random:K:SEED in each of the first K starts under torchrun, kill -9 at a place drawn from the seed
    FAULT_AFTER=PATH    nothing counts before this is there
    FAULT_MARK=FILE     made when it has happened, so that it happens once, however often the run is started

WHAT: forward, step (the middle of one), write (of a checkpoint), publish (all is written, the folder has no name yet):
kill -9. terminate: SIGTERM to this process. slow: two seconds of sleep. nan: a gradient that is none. disk: no file may
grow any more.
"""

import os
import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from switchlora.methods.switchlora import SwitchLoraMethod
from switchlora.training import manifest

counts: dict[str, int] = {}


def due(what: str) -> bool:
    """Whether it is time for this fault."""
    if not Path(os.environ.get("FAULT_AFTER", "/")).exists():
        return False
    counts[what] = counts.get(what, 0) + 1
    wanted, mark = os.environ.get("FAULT", ""), Path(os.environ.get("FAULT_MARK", "."))
    if wanted.startswith("random"):
        wanted, mark = _drawn(*map(int, wanted.split(":")[1:])), Path(f"{mark}-{os.getpid()}")
    if wanted != f"{what}:{counts[what]}:{os.environ.get('RANK', '0')}" or mark.exists():
        return False
    mark.touch()
    return True


def _drawn(num: int, seed: int) -> str:
    """The fault of this start. A step passes one of four groups of layers, a checkpoint some twenty writes."""
    start = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if start >= num:
        return ""
    chance = random.Random(f"{seed} {start}")
    what, highest = chance.choice((("forward", 3), ("step", 9), ("write", 60), ("publish", 2)))
    rank = 0 if what == "publish" else chance.randrange(2)
    return f"{what}:{chance.randint(1, highest)}:{rank}"


def die_if_due(what: str) -> None:
    """Kill this process, if it is time."""
    if due(what):
        os.kill(os.getpid(), signal.SIGKILL)


class NaNGradient(torch.autograd.Function):
    """The identity, with a gradient that is none."""

    @staticmethod
    def forward(context: Any, input: Tensor) -> Tensor:
        return input.view_as(input)

    @staticmethod
    def backward(context: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * torch.nan


class Faulty(SwitchLoraMethod):
    """See the module."""

    name = "faulty"

    def prepare(self, model: nn.Module, options: Any) -> str:
        said = super().prepare(model, options)
        model.get_input_embeddings().register_forward_hook(self._after_embedding)  # type: ignore[operator]
        return said

    def optimizer(self, model: nn.Module, options: Any) -> torch.optim.Optimizer:
        optimizer: Any = super().optimizer(model, options)
        if "FAULT" in os.environ:
            _patch()
            plain = optimizer._step_layers

            def step_layers(*args: Any) -> None:
                plain(*args)
                die_if_due("step")

            optimizer._step_layers = step_layers
        return optimizer

    def _after_embedding(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if not module.training:
            return output
        die_if_due("forward")
        if due("terminate"):
            os.kill(os.getpid(), signal.SIGTERM)
        if due("slow"):
            time.sleep(2)
        if due("disk"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        return NaNGradient.apply(output) if due("nan") else output  # type: ignore[no-untyped-call, no-any-return]


def _patch() -> None:
    write, complete = manifest.SummedFile.write, manifest.complete

    def dying_write(self: manifest.SummedFile, content: bytes) -> int:
        num_bytes = write(self, content)
        die_if_due("write")
        return num_bytes

    def dying_complete(*args: Any) -> None:
        complete(*args)
        die_if_due("publish")

    manifest.SummedFile.write = dying_write  # type: ignore[method-assign]
    manifest.complete = dying_complete


METHOD = Faulty()
