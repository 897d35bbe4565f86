"""torch.optim.Muon, with its Newton-Schulz steps in the matrix's own dtype on the CPU.

torch computes them in bfloat16, for which most CPUs have no instructions: at hidden size 128 that alone tripled the
time of a whole training step. The rule is the same one (`switchlora.muon.muon_`, which a test holds against torch's);
only the rounding differs.
"""

from collections.abc import Callable
from typing import Any

import torch

from switchlora.closures import loss_of
from switchlora.muon import muon_


class Muon(torch.optim.Muon):
    """As torch's with `adjust_lr_fn="match_rms_adamw"` and Nesterov momentum; on accelerators, it is torch's."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all matrices that have gradients."""
        if any(parameter.device.type != "cpu" for group in self.param_groups for parameter in group["params"]):
            return super().step(closure)  # type: ignore[no-untyped-call]
        loss = loss_of(closure)
        for group in self.param_groups:
            assert group["nesterov"] and group["adjust_lr_fn"] == "match_rms_adamw"
            lr = group["lr"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                update = muon_(parameter.grad, state["momentum_buffer"], group["momentum"])
                parameter.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr)
        return loss
