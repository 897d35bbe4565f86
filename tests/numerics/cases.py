"""Small models, data and steps that the tests of the core share."""

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from switchlora import SwitchLora, SwitchLoraConfig, SwitchLoraLinear, convert

CHAIN = (7, 13, 9)  # odd on purpose: no shape here divides another


def config_of(**settings: Any) -> SwitchLoraConfig:
    """Settings that switch often, so that a few steps see everything."""
    return SwitchLoraConfig(**{"r": 3, "interval": 4.0, "decay_ratio": None, "freeze_steps": 2, **settings})


def chain(dims: Sequence[int] = CHAIN, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(dims):
        layers += [nn.Linear(n, m, bias=bias, dtype=dtype), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def start(
    config: SwitchLoraConfig,
    dims: Sequence[int] = CHAIN,
    dtype: torch.dtype = torch.float32,
    *,
    bias: bool = True,
    factor_dtype: torch.dtype | None = None,
    **settings: Any,
) -> tuple[nn.Sequential, SwitchLora]:
    """A converted chain and its optimizer."""
    model = chain(dims, dtype, bias)
    convert(model, config, factor_dtype=factor_dtype)
    return model, SwitchLora(model, config, **{"total_steps": 100, "lr": 1e-2, **settings})


def layers_of(model: nn.Module) -> list[SwitchLoraLinear]:
    return [module for module in model.modules() if isinstance(module, SwitchLoraLinear)]


def backward(model: nn.Module, step: int = 0, batch: int = 5) -> float:
    """One forward and backward on the batch of a step: random inputs, random targets."""
    first = next(p for p in model.parameters() if p.dim() == 2)
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(batch, first.shape[1], generator=generator).to(first.dtype)
    y = model(x)
    loss = (y - torch.randn(y.shape, generator=generator).to(y.dtype)).square().mean()
    loss.backward()
    return float(loss.detach())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range | int) -> list[float]:
    """Steps on random data that is a function of the step; returns the losses."""
    losses = []
    for step in range(steps) if isinstance(steps, int) else steps:
        losses.append(backward(model, step))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def everything(model: nn.Module, optimizer: SwitchLora) -> dict[str, Any]:
    """A copy of all that a run consists of, flat, for `assert_same`."""
    state = optimizer.state_dict()
    flat: dict[str, Any] = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, entries in state["state"].items():
        flat |= {f"state.{index}.{name}": value for name, value in entries.items()}
    for index, group in enumerate(state["param_groups"]):
        flat |= {f"group.{index}.{name}": value for name, value in group.items()}
    return copy.deepcopy(flat)


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Bitwise, in value, dtype and device."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, Tensor):
            assert value.dtype == theirs[name].dtype, name
            assert value.device == theirs[name].device, name
            assert torch.equal(value, theirs[name]), name
        else:
            assert value == theirs[name], name


def side_state(optimizer: SwitchLora, layer: SwitchLoraLinear, letter: str) -> dict[str, Tensor]:
    return optimizer.state[getattr(layer, f"lora_{letter}")]


def switch_alone(optimizer: SwitchLora, layer: SwitchLoraLinear, step: int) -> None:
    """1 to 5 of docs/algorithm.md for one layer, and nothing else."""
    (group,) = [group for group in optimizer._layer_groups if layer in group.layers]
    number = group.layers.index(layer)
    kept, optimizer.param_groups[0]["step"] = optimizer.param_groups[0]["step"], step
    optimizer._switch(group, slice(number, number + 1))
    optimizer.param_groups[0]["step"] = kept


def base(layer: SwitchLoraLinear) -> Tensor:
    """The paper's frozen base, W - s B A, in float64."""
    with torch.no_grad():
        return layer.weight.double() - layer.scaling * layer.lora_B.double() @ layer.lora_A.double()
