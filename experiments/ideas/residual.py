"""SwitchLoRA that also follows the part of the gradient that its factors do not see, without state for it.

R = (1 - P_B) G (1 - P_A), with the projections on the spans of B's columns and A's rows, is what a step of the factors
misses. Here, as in Fira (arXiv 2410.01623), each column of it is scaled as the rule has scaled the seen part's, and its
norm, the rate aside, grows by at most 1 % a step. It needs G, so a backward pass costs as much as full rank's (at
r = h/4 the factors' gradients cost that, too), and G of a layer must be held until its step.
"""

from typing import Any

from switchlora.methods.switchlora import SwitchLoraMethod

GROWTH = 1.01


class Residual(SwitchLoraMethod):
    """See `switchlora.methods.protocol.Method`."""

    name = "residual"

    def optimizer(self, model: Any, options: Any) -> Any:
        """The usual one, followed by the unseen part."""
        import torch

        from switchlora.layer import SwitchLoraLinear

        optimizer = super().optimizer(model, options)
        layers = [module for module in model.modules() if isinstance(module, SwitchLoraLinear)]
        gradients = {layer: torch.zeros_like(layer.weight) for layer in layers}
        self.norms: dict[Any, Any] = {}

        def watch(layer: Any, inputs: Any, output: Any) -> None:
            X = inputs[0].detach().flatten(0, -2)

            def add(dY: Any) -> None:
                gradients[layer].addmm_(dY.flatten(0, -2).T, X)

            if output.requires_grad:
                output.register_hook(add)

        for layer in layers:
            layer.register_forward_hook(watch)
        move = optimizer._move

        @torch.no_grad()
        def move_and_follow(group: Any, part: slice) -> None:
            before = [(layer.weight.clone(), self.spans(layer)) for layer in group.layers[part]]
            move(group, part)
            lr = optimizer.param_groups[0]["lr"]
            for layer, (W, spans) in zip(group.layers[part], before, strict=True):
                layer.weight -= self.more(layer, gradients[layer], spans, layer.weight - W, lr)
                gradients[layer].zero_()

        optimizer._move = move_and_follow
        return optimizer

    def spans(self, layer: Any) -> Any:
        """Orthonormal bases of what the factors see before their step: (n, r) and (m, r)."""
        import torch

        return torch.linalg.qr(layer.lora_A.T)[0], torch.linalg.qr(layer.lora_B)[0]

    def more(self, layer: Any, G: Any, spans: Any, seen_step: Any, lr: float) -> Any:
        """What is taken from W beside the factors' step, all (m, n)."""
        rows, columns = spans
        R = G - columns @ (columns.T @ G)
        R -= R @ rows @ rows.T
        R *= seen_step.norm(dim=0) / (G - R).norm(dim=0).clamp(min=1e-12)
        norm = R.norm() / lr
        if layer in self.norms:
            R *= (most := (GROWTH * self.norms[layer] / norm.clamp(min=1e-12)).clamp(max=1))
            norm = norm * most
        self.norms[layer] = norm
        return R


METHOD = Residual()
