"""Several optimizers of disjoint parameters as one: one step, one list of groups, one state to save.

A rule for matrices (Muon, RACS) says nothing of embeddings and norms, which keep AdamW. Schedulers, clipping and
checkpoints should not have to know.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from switchlora.closures import loss_of


class Together(Optimizer):
    """The optimizers' groups one after another, shared, not copied: a learning rate set here counts there.

    Args:
        optimizers: of disjoint parameters, none with a state yet.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        super().__init__([dict(group) for one in optimizers for group in one.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let every optimizer work on its part of our groups, and all on our state."""
        start = 0
        for one in self.optimizers:
            end = start + len(one.param_groups)
            one.param_groups = self.param_groups[start:end]
            one.state = self.state
            start = end

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of each."""
        loss = loss_of(closure)
        for one in self.optimizers:
            one.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, but numbers stay in the dtype in which they were saved.

        torch casts a state to the dtype of its parameter, which would round the fp32 state of a bf16 weight.
        """
        super().load_state_dict(state_dict)
        self._share()
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for parameter, number in zip(group["params"], saved["params"], strict=True):
                for name, value in state_dict["state"].get(number, {}).items():
                    if isinstance(value, Tensor) and self.state[parameter][name].dtype != value.dtype:
                        self.state[parameter][name] = value.to(parameter.device)
