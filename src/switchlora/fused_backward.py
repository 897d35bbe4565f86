"""Step each layer as soon as its gradients are there, inside the backward pass, and free them at once.

Gradients of a whole model then never exist together: at any time there are those of one layer. The idea is that of
"optimizer step in backward" (torch's tutorial of that name, and LOMO, arXiv 2306.09782); what is computed is the same,
bit for bit, as in a step after the backward pass. By then a layer's weight has done its work in this pass: its own
gradients are computed together with the gradient of its input.

What needs all gradients at once, or more than one backward pass a step, cannot be had with it. What can be seen is
refused at construction; accumulation is refused when it happens. Clipping by global norm cannot be seen from here: it
would find no gradients, and do nothing.
"""

import functools
import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from switchlora.errors import UserError
from switchlora.layer import SwitchLoraLinear


def check_fused_backward(model: nn.Module) -> None:
    """Refuse what stepping inside the backward pass cannot do.

    Raises:
        UserError: names the reason and the way out.
    """
    way_out = "use fused_backward=False"
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise UserError(f"fused_backward=True: DDP averages gradients after this would have used them; {way_out}")
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        raise UserError(
            f"fused_backward=True: {torch.distributed.get_world_size()} processes would each step by their own "
            f"gradients; {way_out}"
        )
    names: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SwitchLoraLinear) and names.setdefault(module, name) != name:
            raise UserError(
                f"fused_backward=True: layer {names[module]} is also {name}, and its weight would move before its last "
                f"use; {way_out}"
            )


class FusedBackward:
    """The hooks of one optimizer, and which of its parameters were stepped since its last `step`.

    Args:
        step_layer: called when both factors of a layer have gradients.
        step_parameter: called when an ordinary parameter has its gradient.
        start: called before the first of these after a `step`.
    """

    def __init__(
        self,
        layers: Iterable[SwitchLoraLinear],
        others: Iterable[tuple[str, nn.Parameter]],
        step_layer: Callable[[SwitchLoraLinear], None],
        step_parameter: Callable[[nn.Parameter], None],
        start: Callable[[], None],
    ) -> None:
        self.done: set[str] = set()
        # Weak: hooks live as long as the parameters, and must not keep a discarded optimizer alive, let alone at work.
        self._calls = weakref.WeakMethod(step_layer), weakref.WeakMethod(step_parameter), weakref.WeakMethod(start)
        for layer in layers:
            for factor in (layer.lora_A, layer.lora_B):
                _call_with_gradient(factor, functools.partial(self._layer_ready, layer))
        for name, parameter in others:
            _call_with_gradient(parameter, functools.partial(self._parameter_ready, name))

    def start_over(self) -> None:
        """A step is finished."""
        self.done = set()

    def _layer_ready(self, layer: SwitchLoraLinear, _: Tensor) -> None:
        step_layer = self._calls[0]()
        if step_layer is None or layer.lora_A.grad is None or layer.lora_B.grad is None:
            return
        self._note(layer.name)
        with torch.no_grad():
            step_layer(layer)
        layer.lora_A.grad = layer.lora_B.grad = None

    def _parameter_ready(self, name: str, parameter: Tensor) -> None:
        step_parameter = self._calls[1]()
        if step_parameter is None:
            return
        assert isinstance(parameter, nn.Parameter)
        self._note(name)
        with torch.no_grad():
            step_parameter(parameter)
        parameter.grad = None

    def _note(self, name: str) -> None:
        if name in self.done:
            raise UserError(
                f"fused_backward=True: {name} got gradients twice without a step() between, and was stepped by the "
                "first ones; accumulate with fused_backward=False"
            )
        start = self._calls[2]()
        if not self.done and start is not None:
            start()
        self.done.add(name)


def _call_with_gradient(parameter: Tensor, call: Callable[[Tensor], None]) -> None:
    parameter.register_post_accumulate_grad_hook(call)  # type: ignore[no-untyped-call]
