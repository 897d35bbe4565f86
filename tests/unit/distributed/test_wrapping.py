"""What FSDP2 can share out."""

from typing import Any

import pytest
import torch
from torch import nn

from switchlora.distributed.wrapping import blocks_of, require_shardable
from switchlora.errors import UserError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3))
        self.head = nn.Linear(4, 8, bias=False)


def test_blocks_are_the_outermost_that_a_model_names() -> None:
    model: Any = Model()
    model._no_split_modules = ["Sequential", "Linear"]
    assert blocks_of(model) == [*model.layers, model.head]
    model._no_split_modules = None
    assert blocks_of(model) == list(model.layers)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_tied_outside_the_layers_or_within_one_are_shared_out(device: str) -> None:
    model = Model()
    model.head.weight = model.embed.weight
    model.layers[1][0].weight = model.layers[1][1].weight  # type: ignore[index,union-attr]
    require_shardable(model.to(device))


@pytest.mark.parametrize("place", ["another layer", "outside"])
def test_weights_tied_across_layers_are_refused(place: str) -> None:
    model = Model()
    own = model.layers[2][1]  # type: ignore[index]
    if place == "outside":
        model.embed.weight = own.weight
    else:
        model.layers[0][0].weight = own.weight  # type: ignore[index,union-attr]
    with pytest.raises(UserError, match=r"--parallel fsdp: Linear.weight is tied to a weight outside.*use ddp"):
        require_shardable(model)


def test_two_dtypes_are_refused_if_both_train() -> None:
    model = Model()
    model.layers[0].bfloat16()
    with pytest.raises(UserError, match=r"torch\.bfloat16 and torch\.float32: FSDP2 sums gradients of one dtype"):
        require_shardable(model)
    model.layers[0].requires_grad_(False)
    require_shardable(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16, torch.float32}
