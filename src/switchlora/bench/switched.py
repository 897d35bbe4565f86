"""SwitchLoRA as the benchmark sees it: with a stopwatch around its switching, and each backward way by force.

Nothing of the method is changed. The optimizer is a subclass that times `_switch`; a way is forced by answering the
layer's cost model for the time of one forward and backward pass.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from switchlora import effective_linear
from switchlora.bench.contestants import Contestant
from switchlora.bench.options import BenchOptions
from switchlora.bench.stopwatch import Stopwatch
from switchlora.config import SwitchLoraConfig
from switchlora.conversion import convert
from switchlora.layer import SwitchLoraLinear
from switchlora.optimizer import SwitchLora

TOTAL_STEPS = 1_000_000  # the interval does not decay here, so any length of the run does
DENSE = {"switchlora-thin": False, "switchlora-dense": True}


class TimedSwitchLora(SwitchLora):
    """SwitchLora that counts the time of its switching apart."""

    stopwatch: Stopwatch

    def _switch(self, *args: Any, **kwargs: Any) -> Any:
        with self.stopwatch.switching():
            return super()._switch(*args, **kwargs)


def build_switchlora(
    model: nn.Module, contestant: Contestant, options: BenchOptions, stopwatch: Stopwatch, lr: float
) -> SwitchLora:
    """Convert `model` in place, and make its optimizer."""
    assert contestant.r is not None
    interval = math.inf if contestant.never_switches else options.interval
    config = SwitchLoraConfig(
        r=contestant.r, interval=interval, decay_ratio=None, seed=options.seed,
        alternate=contestant.method == "switchlora-alternate",
    )  # fmt: skip
    convert(model, config, factor_dtype=torch.bfloat16 if options.factor_dtype == "bf16" else None)
    optimizer = TimedSwitchLora(
        model, config, total_steps=TOTAL_STEPS, lr=lr,
        moment_dtype=torch.bfloat16 if options.moments == "bf16" else None,
        fused_backward=contestant.method == "switchlora-fused",
    )  # fmt: skip
    optimizer.stopwatch = stopwatch
    return optimizer


@contextlib.contextmanager
def backward_way(method: str) -> Iterator[None]:
    """Inside, every SwitchLoRA layer computes its factors' gradients in the one way that `method` names, if any."""
    if method not in DENSE:
        yield
        return
    cost_model = effective_linear.dense_is_cheaper
    effective_linear.dense_is_cheaper = (lambda m, n, r, T: True) if DENSE[method] else (lambda m, n, r, T: False)
    try:
        yield
    finally:
        effective_linear.dense_is_cheaper = cost_model


def same_as_the_cost_models(method: str, model: nn.Module, num_tokens: int) -> bool:
    """Whether the cost model picks this very way for every layer, so that measuring it again would say nothing."""
    layers = [module for module in model.modules() if isinstance(module, SwitchLoraLinear)]
    return method in DENSE and all(
        effective_linear.dense_is_cheaper(one.out_features, one.in_features, one.r, num_tokens) == DENSE[method]
        for one in layers
    )


def num_switches(optimizer: Any) -> int | None:
    """Vectors switched so far; None for other optimizers."""
    return int(optimizer.stats.total.switches_done) if isinstance(optimizer, SwitchLora) else None
