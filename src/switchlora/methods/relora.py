"""ReLoRA: LoRA that is merged and started anew every `--restart-every` steps, with a new warm-up.

See `baselines.relora` for the restart in the effective-weight form, and for the paper's full-rank warm start, which
`--warm-start-steps` asks for. Source: Lialin et al. 2023 (arXiv 2307.05695).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from switchlora.methods.lora import LoraMethod
from switchlora.methods.protocol import LOW_RANK, RESTARTING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class ReLoraMethod(LoraMethod):
    """See `protocol.Method`."""

    name = "relora"
    lr = 1e-2
    uses = (LOW_RANK | RESTARTING) - {"fused_backward"}
    shards = False

    def optimizer(self, model: "nn.Module", options: Any) -> "Optimizer":
        """See `protocol.Method`."""
        from switchlora.baselines.relora import ReLora

        return ReLora(
            model,
            self.config(options),
            restart_every=options.restart_every,
            rewarm_steps=options.rewarm_steps,
            warm_start_steps=options.warm_start_steps,
            warm_start_lr=options.warm_start_lr,
            **{**self.settings(options), "fused_backward": False},
        )

    def metrics(self, optimizer: "Optimizer") -> Mapping[str, float]:
        """See `protocol.Method`: restarts, what they reset, and what re-warming multiplied the logged rates by."""
        group = optimizer.param_groups[0]
        own = {name: group[name] for name in ("restarts", "moments_reset", "rewarming")}
        return {**super().metrics(optimizer), **own}

    def totals(self, optimizer: "Optimizer") -> Mapping[str, int]:
        """See `protocol.Method`."""
        return {"restarts": optimizer.param_groups[0]["restarts"]}
