"""SwitchLoRA as in the paper (arXiv 2406.06564): low-rank factors whose vectors keep being exchanged."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from switchlora.errors import UserError
from switchlora.methods.protocol import LOW_RANK, SWITCHING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from switchlora.config import SwitchLoraConfig
    from switchlora.stats import SwitchStats


class SwitchLoraMethod:
    """See `protocol.Method`."""

    name = "switchlora"
    lr = 2e-2
    init_lora_weights: str | None = "switchlora"
    uses = LOW_RANK | SWITCHING
    rule = "adamw"
    shards = True

    def config(self, options: Any) -> "SwitchLoraConfig":
        """The settings of the core that the options of a run ask for."""
        from switchlora.config import SwitchLoraConfig

        return SwitchLoraConfig(
            r=options.r,
            lora_alpha=options.lora_alpha,
            target_modules=options.target_modules,
            init_lora_weights=options.init_lora_weights,
            seed=options.seed,
            **self.switching(options),
        )

    def switching(self, options: Any) -> dict[str, Any]:
        """The settings of the switching alone."""
        return {name: getattr(options, name) for name in SWITCHING}

    def prepare(self, model: "nn.Module", options: Any) -> str:
        """See `protocol.Method`."""
        from switchlora.conversion import convert
        from switchlora.precision import stored_dtype

        try:
            return str(convert(model, self.config(options), factor_dtype=stored_dtype(options.factor_dtype)))
        except UserError as error:  # the library's name of the argument is not the command's
            raise UserError(str(error).replace("target_modules", "--target-modules", 1)) from None

    def optimizer(self, model: "nn.Module", options: Any) -> "Optimizer":
        """See `protocol.Method`."""
        from switchlora.optimizer import SwitchLora

        return SwitchLora(model, self.config(options), **self.settings(options))

    def settings(self, options: Any) -> dict[str, Any]:
        """The settings of the optimizer."""
        from switchlora.precision import stored_dtype

        return {
            "total_steps": options.steps,
            "lr": options.lr,
            "other_lr": options.other_lr,
            "weight_decay": options.weight_decay,
            "rule": self.rule,
            "moment_dtype": stored_dtype(options.moment_dtype),
            "fused_backward": options.fused_backward,
        }

    def metrics(self, optimizer: "Optimizer") -> Mapping[str, float]:
        """See `protocol.Method`."""
        stats = _stats(optimizer)
        return {**dataclasses.asdict(stats.last), "switches_done_total": stats.total.switches_done}

    def totals(self, optimizer: "Optimizer") -> Mapping[str, int]:
        """See `protocol.Method`."""
        return dataclasses.asdict(_stats(optimizer).total)

    def finish(self, model: "nn.Module") -> None:
        """See `protocol.Method`."""
        from switchlora.conversion import to_dense

        to_dense(model)


def _stats(optimizer: "Optimizer") -> "SwitchStats":
    from switchlora.optimizer import SwitchLora

    assert isinstance(optimizer, SwitchLora)
    return optimizer.stats
