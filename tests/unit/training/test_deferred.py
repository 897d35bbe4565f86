"""A model built without memory becomes, parameter by parameter, the one that is built at once."""

import importlib

import numpy
import pytest
import torch
from torch import nn

from switchlora.training.deferred import NotRecordable, recording


class Odd(nn.Module):
    """What models do to their parameters: draw, fill, fill a part, copy, and bring values of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 3)
        self.embedding = nn.Embedding(7, 4, padding_idx=2)
        self.norm = nn.LayerNorm(4)
        self.given = nn.Parameter(torch.arange(6.0).view(2, 3))
        self.drawn = nn.Parameter(torch.randn(2, 2))
        self.uniform = nn.Parameter(torch.empty(40, 4))
        nn.init.xavier_uniform_(self.uniform)
        with torch.no_grad():
            self.embedding.weight[3].fill_(7.0)
            self.given[:, 1].copy_(torch.tensor([5.0, 6.0]))
        self.register_buffer("table", torch.arange(3))


@pytest.mark.parametrize("seed", [0, 5])
def test_every_value_is_drawn_again(seed: int) -> None:
    torch.manual_seed(seed)
    real = Odd()
    after = torch.get_rng_state()
    torch.manual_seed(seed)
    with recording() as recorder:
        light = Odd()
    assert torch.equal(torch.get_rng_state(), after)
    for (name, parameter), (same, empty) in zip(real.named_parameters(), light.named_parameters(), strict=True):
        assert name == same and empty.is_meta
        assert torch.equal(recorder.of(empty).value(parameter.shape, torch.float32), parameter), name
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(light.get_buffer("table"), real.get_buffer("table"))
    assert not nn.Linear(2, 2).weight.is_meta  # outside, all is as it was


def test_values_from_elsewhere_are_kept() -> None:
    """torch did not make them empty, but they lie, now and then, where a parameter lay that was replaced."""
    with recording() as recorder:
        for number in range(500):
            nn.Linear(8, 8)
            holder = nn.Module()
            holder.register_parameter("numpy", nn.Parameter(torch.from_numpy(numpy.full(8, number, numpy.float32))))
            holder.register_parameter("given", nn.Parameter(torch.FloatTensor([number, number])))
            for parameter in holder.parameters():
                value = recorder.of(parameter).value(parameter.shape, torch.float32)
                assert torch.equal(value, torch.full(parameter.shape, float(number)))


def test_a_parameter_that_nobody_registered_is_not_recorded_in_silence() -> None:
    with recording() as recorder:
        layer = nn.Linear(2, 2)
        layer._parameters["weight"] = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(NotRecordable):
        recorder.of(layer.weight)


@pytest.mark.parametrize("name", ["trunc_normal_", "orthogonal_"])
@pytest.mark.parametrize("module", ["torch.nn.init", "transformers.initialization"])
def test_what_looks_at_values_is_not_recorded_in_silence(module: str, name: str) -> None:
    initialisation = importlib.import_module(module)
    with pytest.raises(NotRecordable), recording():
        getattr(initialisation, name)(nn.Linear(5, 3).weight)
