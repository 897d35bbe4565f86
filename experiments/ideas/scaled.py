"""SwitchLoRA with scaled gradients: that of A times (B^T B + d)^-1, that of B times (A A^T + d)^-1, then AdamW.

With them s(B dA + dB A) comes closest to -lr G in the span of the factors, whatever their conditioning (Zhang &
Pilanci 2024, arXiv 2402.02347). Each r x r matrix is divided by its mean eigenvalue, so that rates keep their scale;
d is 1e-2 of it.
"""

from typing import Any

from switchlora.methods.switchlora import SwitchLoraMethod

DAMPING = 1e-2


def scaled(grad: Any, gram: Any) -> Any:
    """grad (r, k) times the inverse of gram (r, r), damped and of mean eigenvalue 1."""
    import torch

    gram = gram / gram.diagonal().mean()
    gram.diagonal().add_(DAMPING)
    return torch.cholesky_solve(grad, torch.linalg.cholesky(gram))


class Scaled(SwitchLoraMethod):
    """See `switchlora.methods.protocol.Method`."""

    name = "scaled"

    def optimizer(self, model: Any, options: Any) -> Any:
        """The usual one behind a hook that scales gradients before each step."""
        import torch

        from switchlora.layer import SwitchLoraLinear

        layers = [module for module in model.modules() if isinstance(module, SwitchLoraLinear)]

        @torch.no_grad()
        def scale(*_: Any) -> None:
            for layer in layers:
                A, B = layer.lora_A, layer.lora_B
                grad_A, grad_B = scaled(A.grad, B.T @ B), scaled(B.grad.T, A @ A.T).T
                A.grad.copy_(grad_A)
                B.grad.copy_(grad_B)

        optimizer = super().optimizer(model, options)
        optimizer.register_step_pre_hook(scale)
        return optimizer


METHOD = Scaled()
