"""Full-rank training with torch.optim.AdamW: what every cheaper method is held against.

Two learning rates, as everywhere here: `--lr` for the matrices that the low-rank methods would convert,
`--other-lr` for embeddings, head, norms and biases. A bf16 model keeps its moments in bf16 and rounds to nearest,
as torch does; use bf16-mixed for a fair baseline.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class FullMethod:
    """See `protocol.Method`."""

    name = "full"
    lr = 1e-3
    init_lora_weights: str | None = None
    uses: frozenset[str] = frozenset()

    def prepare(self, model: "nn.Module", options: Any) -> str:
        """See `protocol.Method`; the model stays as it is."""
        num_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return f"full-rank: {num_trainable:,} trainable parameters"

    def optimizer(self, model: "nn.Module", options: Any) -> "Optimizer":
        """See `protocol.Method`."""
        import torch

        from switchlora.conversion import hidden_linears

        hidden = [linear.weight for linear in hidden_linears(model) if linear.weight.requires_grad]
        taken = set(hidden)
        others = [p for p in model.parameters() if p.requires_grad and p not in taken]
        groups = [{"params": hidden, "lr": options.lr}, {"params": others, "lr": options.other_lr}]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=options.weight_decay,
            fused=True,
        )

    def metrics(self, optimizer: "Optimizer") -> Mapping[str, int]:
        """See `protocol.Method`."""
        return {}

    def totals(self, optimizer: "Optimizer") -> Mapping[str, int]:
        """See `protocol.Method`."""
        return {}

    def finish(self, model: "nn.Module") -> None:
        """See `protocol.Method`; the model is dense already."""
