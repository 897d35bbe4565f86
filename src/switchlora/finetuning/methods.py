"""Which parameters of a classifier train, by which optimizer, and what happens after each of its steps.

The new head trains in full with every method, at a learning rate of its own where that is asked for.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from switchlora.config import SwitchLoraConfig
from switchlora.conversion import convert, to_dense
from switchlora.errors import UserError
from switchlora.finetuning.models import HEAD, body, is_head
from switchlora.finetuning.options import FinetuneOptions
from switchlora.finetuning.subset import Subset
from switchlora.methods.parameters import BETAS, EPS
from switchlora.optimizer import SwitchLora


@dataclasses.dataclass(frozen=True)
class Method:
    """A classifier made ready to train.

    after_step: is called after each step of the optimizer; finish: makes the model plain and dense again.
    """

    optimizer: torch.optim.Optimizer
    trainable: Sequence[Tensor]
    after_step: Callable[[], None] = lambda: None
    finish: Callable[[], None] = lambda: None


def prepare(model: nn.Module, options: FinetuneOptions, lr: float, total_steps: int, seed: int) -> Method:
    """Make a classifier ready, in place.

    Raises:
        UserError: a rank that is too large for its layers, or an epsilon too small for them; no layer that can have
            factors.
    """
    if options.method in ("lora", "switchlora"):
        return _with_factors(model, options, lr, total_steps, seed)
    rest = body(model)
    head = [p for name, p in model.named_parameters() if is_head(name)]
    groups: list[dict[str, Any]] = [{"params": list(rest.values()), "lr": lr}]
    groups.append({"params": head, "lr": options.head_lr or lr})
    optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPS, weight_decay=options.weight_decay, fused=True)
    trainable = [*rest.values(), *head]
    if options.method == "full":
        return Method(optimizer, trainable)
    return Method(optimizer, trainable, after_step=Subset(rest, options.epsilon, options.silo).project_)


def _with_factors(model: nn.Module, options: FinetuneOptions, lr: float, total_steps: int, seed: int) -> Method:
    switches = options.method == "switchlora"
    config = SwitchLoraConfig(
        r=options.r,
        lora_alpha=options.lora_alpha,
        exclude_modules=[HEAD],
        init_lora_weights="switchlora" if switches else "lora",
        interval=options.interval if switches else math.inf,
        seed=seed,
    )
    try:
        convert(model, config)
    except UserError as error:
        named, said = f"r={options.r}: ", str(error)
        if said.startswith(named):
            raise UserError(f"--r {options.r}: {said.removeprefix(named)}") from None
        raise UserError(f"--method {options.method}: {said}; use full or subset") from None
    factors = {p for name, p in model.named_parameters() if name.rpartition(".")[2] in ("lora_A", "lora_B")}
    for name, p in model.named_parameters():
        p.requires_grad_(p in factors or is_head(name))
    optimizer = SwitchLora(
        model, config, total_steps=total_steps, lr=lr, other_lr=options.head_lr or lr, betas=BETAS, eps=EPS,
        weight_decay=options.weight_decay,
    )  # fmt: skip
    trainable = [p for p in model.parameters() if p.requires_grad]

    def finish() -> None:
        to_dense(model)

    return Method(optimizer, trainable, finish=finish)
