"""What the trainer knows of a method: five calls and its defaults. The loop never asks which method it has.

A method's file imports torch only inside its functions, so that the command line can read defaults at once.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

STORAGE = frozenset({"factor_dtype", "moment_dtype", "fused_backward"})
LOW_RANK = frozenset({"r", "lora_alpha", "init_lora_weights", "target_modules"}) | STORAGE
SWITCHING = frozenset({"interval", "decay_ratio", "freeze_steps", "reset", "order", "candidates", "alternate"})
RESTARTING = frozenset({"restart_every", "rewarm_steps", "warm_start_steps", "warm_start_lr"})
PROJECTING = frozenset({"projection_gap", "projection_scale"})
FOLLOWING = frozenset({"polar"})
OF_METHODS = LOW_RANK | SWITCHING | RESTARTING | PROJECTING | FOLLOWING


class Method(Protocol):
    """One way to train the linear layers of a model.

    Attributes:
        name: of the method, on the command line and in results.
        lr: its default learning rate.
        init_lora_weights: its default initialisation of factors, None where there are none.
        uses: the options of `OF_METHODS` that mean something to it.
        shards: whether it can train parameters of which each rank holds some rows (`--parallel fsdp`).
    """

    @property
    def name(self) -> str: ...
    @property
    def lr(self) -> float: ...
    @property
    def init_lora_weights(self) -> str | None: ...
    @property
    def uses(self) -> frozenset[str]: ...
    @property
    def shards(self) -> bool: ...

    def prepare(self, model: "nn.Module", options: Any) -> str:
        """Change the model in place to what is trained, before it is moved or wrapped; returns what was done.

        Args:
            model: dense, in its final dtype, maybe on the meta device.
            options: resolved `training.options.PretrainOptions`.
        """

    def optimizer(self, model: "nn.Module", options: Any) -> "Optimizer":
        """The optimizer of a prepared model, on its device."""

    def metrics(self, optimizer: "Optimizer") -> Mapping[str, float]:
        """Numbers of the last step that only this method has, for metrics.jsonl and the progress bar."""

    def totals(self, optimizer: "Optimizer") -> Mapping[str, int]:
        """The same over the whole run, for result.json."""

    def finish(self, model: "nn.Module") -> None:
        """Turn the model in place into the plain dense model that is exported."""
