"""Step each layer as soon as its gradients are there, inside the backward pass, and free them at once.

Gradients of a whole model then never exist together: at any time there are those of one layer. The idea is that of
"optimizer step in backward" (torch's tutorial of that name, and LOMO, arXiv 2306.09782); what is computed is the same,
bit for bit, as in a step after the backward pass. By then a layer's weight has done its work in this pass: its own
gradients are computed together with the gradient of its input.

A layer that is called several times in a forward pass is stepped once, after its last use: autograd adds up the
gradients of all uses before it hands them over. Where it does not (uses in several reentrant checkpoints), the second
gradient is refused; a layer that is shared under several names is refused at once, for then this must be expected.

What needs all gradients at once, or more than one backward pass a step, cannot be had with it. What can be seen at
construction is refused there, the rest when it happens: accumulation, several processes or DDP that came later, a
gradient scaler, clipping. Until `step` a `SpentGradient` is left in the place of a gradient, and whoever computes with
it is told. Of two optimizers of this kind the later one has the gradients, and the earlier one says so when it is asked
to step.
"""

import functools
import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from switchlora.errors import UserError
from switchlora.layer import SwitchLoraLinear
from switchlora.precision import without_autocast
from switchlora.spent_gradient import SpentGradient, twice

WAY_OUT = "use fused_backward=False"


def check_fused_backward(model: nn.Module) -> None:
    """Refuse what stepping inside the backward pass cannot do.

    Raises:
        UserError: names the reason and the way out.
    """
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise UserError(f"fused_backward=True: DDP averages gradients after this would have used them; {WAY_OUT}")
    check_one_process()
    names: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SwitchLoraLinear) and names.setdefault(module, name) != name:
            raise UserError(
                f"fused_backward=True: layer {names[module]} is also {name}, and the gradients of its uses may come "
                f"apart (in reentrant checkpoints they do), where each would be a step of its own; {WAY_OUT}"
            )


def check_one_process() -> None:
    """Refuse several processes, with DDP around the model or without.

    Raises:
        UserError: says how many there are.
    """
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise UserError(
            f"fused_backward=True: {distributed.get_world_size()} processes would each step by their own gradients, "
            f"before DDP could average them; {WAY_OUT}"
        )


class FusedBackward:
    """The hooks of one optimizer, and which of its parameters were stepped since its last `step`.

    Args:
        step_layer: called when a layer has all its gradients: those of both factors, and of W where it takes one.
        step_parameter: called when an ordinary parameter has its gradient.
        start: called before the first of these after a `step`.

    Raises:
        UserError: a parameter has a gradient already.
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
        self.is_replaced = False  # by a later optimizer, which has the gradients now
        # Weak: hooks live as long as the parameters, and must not keep a discarded optimizer alive, let alone at work.
        self._calls = weakref.WeakMethod(step_layer), weakref.WeakMethod(step_parameter), weakref.WeakMethod(start)
        layers, others = list(layers), list(others)
        of_layers = [(layer.name, parameter) for layer in layers for parameter in layer.stepped_by]
        self._parameters = [*of_layers, *others]
        for name, parameter in self._parameters:
            if parameter.grad is not None:
                raise UserError(
                    f"fused_backward=True: {name} has a gradient already; call zero_grad() before the optimizer is made"
                )
        for _, parameter in self._parameters:
            for other in _hooked_to(parameter):
                other.is_replaced = True
        for layer in layers:
            for parameter in layer.stepped_by:
                _call_with_gradient(parameter, functools.partial(self._layer_ready, layer))
        for name, parameter in others:
            _call_with_gradient(parameter, functools.partial(self._parameter_ready, name))

    def finish(self) -> bool:
        """Refuse to call what was done since the last `step` a step if it was none; else begin the next one.

        Returns:
            whether anything was stepped since.

        Raises:
            UserError: a gradient was there again after the parameter was stepped, or another optimizer has them.
        """
        if self.is_replaced:
            raise UserError(
                "fused_backward=True: a later optimizer steps this model inside its backward passes now; use that one"
            )
        done, self.done = self.done, set()
        for name, parameter in self._parameters:
            if isinstance(parameter.grad, SpentGradient):
                parameter.grad = None
            elif name in done and parameter.grad is not None:
                raise UserError(
                    f"fused_backward=True: {name} was stepped in the backward pass and has a gradient again, as DDP "
                    f"leaves one; take the wrapper off, or {WAY_OUT}"
                )
        return bool(done)

    def _layer_ready(self, layer: SwitchLoraLinear, parameter: Tensor) -> None:
        step_layer = self._calls[0]()
        if step_layer is None or self.is_replaced or not _is_there(layer.name, parameter) or not layer.has_gradients:
            return
        self._note(layer.name)
        with torch.no_grad(), without_autocast(parameter.device):
            step_layer(layer)
        for spent in layer.stepped_by:
            spent.grad = SpentGradient(spent, layer.name)

    def _parameter_ready(self, name: str, parameter: Tensor) -> None:
        step_parameter = self._calls[1]()
        if step_parameter is None or self.is_replaced or not _is_there(name, parameter):
            return
        assert isinstance(parameter, nn.Parameter)
        self._note(name)
        with torch.no_grad(), without_autocast(parameter.device):
            step_parameter(parameter)
        parameter.grad = SpentGradient(parameter, name)

    def _note(self, name: str) -> None:
        if name in self.done:
            raise twice(name)
        start = self._calls[2]()
        if not self.done and start is not None:
            check_one_process()
            start()
        self.done.add(name)


def _call_with_gradient(parameter: Tensor, call: Callable[[Tensor], None]) -> None:
    parameter.register_post_accumulate_grad_hook(call)  # type: ignore[no-untyped-call]


def _hooked_to(parameter: Tensor) -> list[FusedBackward]:
    """Those that hear of a parameter's gradient already."""
    hooks = (parameter._post_accumulate_grad_hooks or {}).values()
    owners = (getattr(getattr(hook, "func", None), "__self__", None) for hook in hooks)
    return [owner for owner in owners if isinstance(owner, FusedBackward)]


def _is_there(name: str, parameter: Tensor) -> bool:
    """Whether a parameter whose hook is called has a gradient: none where only later layers of its chain take part."""
    if isinstance(parameter.grad, SpentGradient):
        raise twice(name)
    return parameter.grad is not None
