"""ReLoRA: LoRA whose factors are merged and started anew every so many steps.

In the effective-weight form W = W_base + s B A is what is stored, so a merge changes nothing in W: the restart draws a
new A and sets B to zero, bit for bit the same function. (Both zero would have zero gradients for ever.) The factors'
moments are pruned: only the hundredth whose first moment is largest stays, of both moments alike. And the learning rate
warms up again.

With a warm start the layers are plain linear ones for the first steps, and AdamW trains W itself. Then W stays where it
is, its gradient and moments are freed, and the factors take over from their initial values, with B = 0.

Source: Lialin et al. 2023 (arXiv 2307.05695), section 3.
"""

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from switchlora import draws
from switchlora.config import SwitchLoraConfig
from switchlora.errors import UserError
from switchlora.initialisation import vector_bounds
from switchlora.layer import SwitchLoraLinear
from switchlora.optimizer import SwitchLora


class ReLora(SwitchLora):
    """SwitchLora without switching, with restarts.

    Args:
        model, config: as of `SwitchLora`; the interval is taken to be infinite, the initialisation must be "lora".
        restart_every: steps from one restart to the next.
        rewarm_steps: over which the learning rates warm up again after a restart.
        kept_share: of the numbers of a factor, those with the largest first moments, whose moments a restart keeps.
        warm_start_steps: for which all of W is trained first; restarts count from their end.
        warm_start_lr: learning rate of W in these; None: `settings["lr"]`.
        settings: as of `SwitchLora`.

    Attributes:
        In the first group are the number of restarts, as "restarts", how many numbers of the factors lost their moments
        in them, as "moments_reset", and what the learning rates of the last step were multiplied by, as "rewarming".
        Weights in their warm start are the second group, which is empty afterwards.
    """

    def __init__(
        self,
        model: nn.Module,
        config: SwitchLoraConfig,
        *,
        restart_every: int,
        rewarm_steps: int,
        kept_share: float = 0.01,
        warm_start_steps: int = 0,
        warm_start_lr: float | None = None,
        **settings: Any,
    ) -> None:
        if settings.get("fused_backward"):
            raise UserError("fused_backward=True: ReLoRA changes the learning rate of a step in step(); leave it out")
        if config.init_lora_weights != "lora":
            raise UserError(f"init_lora_weights={config.init_lora_weights!r}: ReLoRA restarts with B = 0; use 'lora'")
        if config.polar:
            raise UserError(f"polar={config.polar:g}: ReLoRA trains its factors alone; use polar=0")
        if settings.get("rule", "adamw") != "adamw":
            raise UserError(f"rule={settings['rule']!r}: ReLoRA's restarts prune AdamW's moments; use rule='adamw'")
        super().__init__(model, dataclasses.replace(config, interval=float("inf")), **settings)
        self.restart_every, self.rewarm_steps, self.kept_share = restart_every, rewarm_steps, kept_share
        self.warm_start_steps = warm_start_steps
        self.param_groups[0] |= {"restarts": 0, "moments_reset": 0, "rewarming": 1.0}
        if warm_start_steps:
            self._begin_warm_start(settings["lr"] if warm_start_lr is None else warm_start_lr)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, and a restart after every `restart_every`-th, or the end of the warm start."""
        group = self.param_groups[0]
        rates = [one["lr"] for one in self.param_groups]
        group["rewarming"] = self.rewarming(group["step"])
        for one in self.param_groups:
            one["lr"] = one["lr"] * group["rewarming"]  # a new one, where it is a tensor
        try:
            loss = super().step(closure)
        finally:
            for one, lr in zip(self.param_groups, rates, strict=True):
                one["lr"] = lr
        since = group["step"] - self.warm_start_steps
        if since == 0:
            self._end_warm_start()
        elif since > 0 and since % self.restart_every == 0:
            for layer in self._layers:
                self._restart(layer)
            group["restarts"] += 1
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """As of `SwitchLora`, with our own settings."""
        own = ("restart_every", "rewarm_steps", "kept_share", "warm_start_steps")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of `SwitchLora`, also of a state from after the warm start where this one is still in it."""
        if self.param_groups[0]["step"] < self.warm_start_steps <= state_dict["param_groups"][0]["step"]:
            self._end_warm_start()
        super().load_state_dict(state_dict)

    def rewarming(self, step: int) -> float:
        """By what the learning rates are multiplied in this step (from 0); 1 before the first break."""
        since = step - self.warm_start_steps
        if since < (0 if self.warm_start_steps else self.restart_every):
            return 1.0
        return min(1.0, (since % self.restart_every + 1) / (self.rewarm_steps + 1))

    def _begin_warm_start(self, lr: float) -> None:
        """Make the layers plain ones, whose weight is trained like any parameter."""
        for layer in self._layers:
            layer.weight.requires_grad_(True)
            layer.forward = types.MethodType(nn.Linear.forward, layer)  # type: ignore[method-assign]
            self._names[layer.weight] = f"{layer.name}.weight"
        self.add_param_group({"params": [layer.weight for layer in self._layers], "lr": lr})
        self.param_groups.insert(1, self.param_groups.pop())

    def _end_warm_start(self) -> None:
        """Leave W where it is, free its gradient and moments, and let the factors begin."""
        for layer in self._layers:
            layer.weight.requires_grad_(False)
            layer.weight.grad = None
            del layer.forward, self.state[layer.weight]
        self.param_groups[1]["params"] = []

    @torch.no_grad()
    def _restart(self, layer: SwitchLoraLinear) -> None:
        m, n, r = layer.out_features, layer.in_features, layer.r
        step = self.param_groups[0]["step"]
        rows = torch.arange(r, device=layer.lora_A.device)
        bound = vector_bounds(m, n, r, "lora")["A"]
        key = draws.key(self.config.seed, layer.name, "restart of A", step)
        layer.lora_A.copy_(draws.uniform_vectors(key, rows, n, bound, layer.lora_A.dtype))
        layer.lora_B.zero_()
        for factor in (layer.lora_A, layer.lora_B):
            state = self.state[factor]
            self.param_groups[0]["moments_reset"] += prune_(state["exp_avg"], state["exp_avg_sq"], self.kept_share)


def prune_(exp_avg: Tensor, exp_avg_sq: Tensor, kept_share: float) -> int:
    """Zero both moments at all places but the share where the first is largest in magnitude.

    At the same places: a first moment that lost its second would be divided by eps alone, a step of thousands of rates.

    Returns:
        At how many places.
    """
    num_kept = round(kept_share * exp_avg.numel())
    magnitudes = exp_avg.abs()
    smallest_kept = magnitudes.flatten().topk(num_kept).values[-1] if num_kept else float("inf")
    for moment in (exp_avg, exp_avg_sq):
        moment[magnitudes < smallest_kept] = 0
    return exp_avg.numel() - num_kept
