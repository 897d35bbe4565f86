"""SwitchLoRA whose vectors are orthonormal, times the norm that the paper's uniform ones have on average.

The candidates of each side, the active vectors among them, are c = min(m, n) rows. They are made orthogonal by QR and
scaled, before training starts; with a pool they stay what they are until they are trained. W stays as it is.
"""

from typing import Any

from switchlora.methods.switchlora import SwitchLoraMethod


class Orthonormal(SwitchLoraMethod):
    """See `switchlora.methods.protocol.Method`."""

    name = "orthonormal"

    def optimizer(self, model: Any, options: Any) -> Any:
        """The usual one, with other vectors in pools and factors."""
        import torch

        from switchlora.layer import SwitchLoraLinear

        optimizer = super().optimizer(model, options)
        with torch.no_grad():
            for layer in (module for module in model.modules() if isinstance(module, SwitchLoraLinear)):
                for factor, rows in ((layer.lora_A, layer.lora_A), (layer.lora_B, layer.lora_B.T)):
                    state = optimizer.state[factor]
                    pool = state["candidates"]
                    norm = pool.square().sum(1).mean().sqrt()
                    q, _ = torch.linalg.qr(pool.double().T)
                    pool.copy_(q.T * norm)
                    rows.copy_(pool[state["slots"]])
        return optimizer


METHOD = Orthonormal()
