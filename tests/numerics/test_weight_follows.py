"""W is W_base + s B A at every moment, though it is only ever added to; and weight decay acts on W alone."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

from switchlora import SwitchLora, convert
from switchlora.weight_update import update_weight_
from tests.numerics.cases import base, chain, config_of, layers_of, start, train

RELATIVE = {torch.float32: 1e-6, torch.float64: 1e-14}  # ||W - (W_base + s B A)|| / ||W||, after hundreds of steps


@pytest.mark.parametrize("dtype", RELATIVE, ids=str)
@pytest.mark.parametrize("dims", [(32, 48, 16), (7, 13, 9)], ids=str)
def test_between_switches_the_base_stays_over_hundreds_of_steps(dtype, dims):
    model, optimizer = start(config_of(interval=float("inf")), dims, dtype, lr=1e-3)
    bases = [base(layer) for layer in layers_of(model)]
    train(model, optimizer, 200)
    for layer, before in zip(layers_of(model), bases, strict=True):
        assert (layer.scaling * layer.lora_B @ layer.lora_A).abs().max() > 0.05  # the factors did move
        assert (base(layer) - before).norm() <= RELATIVE[dtype] * layer.weight.norm()


class PaperBookkeeping(SwitchLora):
    """Keeps the paper's W_base beside ours, corrected at every switch by s (b_old a_old - b_new a_new), in float64."""

    bases: dict[str, Tensor]

    def _switch(self, group, part):
        before = [product(layer) for layer in group.layers[part]]
        super()._switch(group, part)
        for layer, was in zip(group.layers[part], before, strict=True):
            self.bases[layer.name] += was - product(layer)


def product(layer):
    return layer.scaling * layer.lora_B.detach().double() @ layer.lora_A.detach().double()


@pytest.mark.parametrize("dtype", RELATIVE, ids=str)
@pytest.mark.parametrize("settings", [{}, {"order": "random"}, {"candidates": "fresh"}, {"init_lora_weights": "lora"}])
def test_through_hundreds_of_switches_w_is_the_paper_s_base_plus_its_adapter(dtype, settings):
    config = config_of(**settings)
    model = chain((32, 48, 16), dtype)
    convert(model, config)
    optimizer = PaperBookkeeping(model, config, total_steps=400, lr=1e-3)
    optimizer.bases = {layer.name: base(layer) for layer in layers_of(model)}
    start_bases = {name: W.clone() for name, W in optimizer.bases.items()}
    train(model, optimizer, 400)
    assert optimizer.stats.total.switches_done > 250
    for layer in layers_of(model):
        paper = optimizer.bases[layer.name] + product(layer)
        assert (optimizer.bases[layer.name] - start_bases[layer.name]).norm() > 1e3 * RELATIVE[dtype] * paper.norm()
        assert (layer.weight.double() - paper).norm() <= RELATIVE[dtype] * layer.weight.norm()


@pytest.mark.parametrize("weight_decay", [0.1, 1.0])
def test_decay_shrinks_the_weight_and_never_the_factors(weight_decay):
    """Twin runs of one step from the same gradients: factors agree bitwise, W differs by lr wd W."""
    lr = 1e-2
    plain, plain_optimizer = start(config_of(), dtype=torch.float64, lr=lr)
    decayed, optimizer = start(config_of(), dtype=torch.float64, lr=lr, weight_decay=weight_decay)
    decayed.load_state_dict(plain.state_dict())
    optimizer.load_state_dict({**plain_optimizer.state_dict(), "param_groups": optimizer.state_dict()["param_groups"]})
    for step in range(5):
        decayed.load_state_dict(plain.state_dict())
        before = [layer.weight.clone() for layer in layers_of(plain)]
        train(plain, plain_optimizer, range(step, step + 1))
        train(decayed, optimizer, range(step, step + 1))
        for one, other, W in zip(layers_of(plain), layers_of(decayed), before, strict=True):
            assert torch.equal(one.lora_A, other.lora_A)
            assert torch.equal(one.lora_B, other.lora_B)
            torch.testing.assert_close(other.weight, one.weight - lr * weight_decay * W, rtol=1e-14, atol=1e-15)


def test_decay_also_acts_where_every_vector_rests():
    model, optimizer = start(config_of(), dtype=torch.float64, lr=0.1, weight_decay=0.5)
    (layer, _) = layers_of(model)
    for letter in ("A", "B"):
        optimizer.state[getattr(layer, f"lora_{letter}")]["frozen"].fill_(9)
    before = layer.weight.clone(), layer.lora_A.clone(), layer.lora_B.clone()
    train(model, optimizer, 1)
    torch.testing.assert_close(layer.weight, 0.95 * before[0], rtol=1e-15, atol=0)
    assert torch.equal(layer.lora_A, before[1])
    assert torch.equal(layer.lora_B, before[2])


@hypothesis.given(
    m=st.integers(1, 40), n=st.integers(1, 40), r=st.integers(1, 12), dtype=st.sampled_from(list(RELATIVE)),
    scale=st.floats(1e-7, 1.0), seed=st.integers(0, 2**31),
)  # fmt: skip
@hypothesis.settings(max_examples=60)
def test_one_update_equals_the_formula_in_float64(m, n, r, dtype, scale, seed):
    """s (B'A' - B A), of which the two halves cancel: relative to the update itself, however small it is."""
    torch.manual_seed(seed)
    A, B = torch.randn(r, n, dtype=dtype), torch.randn(m, r, dtype=dtype)
    dA, dB = scale * torch.randn(r, n, dtype=dtype), scale * torch.randn(m, r, dtype=dtype)
    W = torch.zeros(m, n, dtype=dtype)
    new_A = A + dA
    dA = new_A - A  # as stored
    update_weight_(W, torch.cat((dB, B), dim=1), torch.cat((new_A, dA)), 0.3, 1.0, key=None)
    wide = [t.double() for t in (A, B, dA, dB)]
    exact = 0.3 * ((wide[1] + wide[3]) @ (wide[0] + wide[2]) - wide[1] @ wide[0])
    if dtype == torch.float64:  # the reference itself cancels here
        exact = 0.3 * (wide[3] @ (wide[0] + wide[2]) + wide[1] @ wide[2])
    size = 0.3 * (wide[3].abs() @ (wide[0] + wide[2]).abs() + wide[1].abs() @ wide[2].abs())
    assert ((W.double() - exact).abs() <= 2 * (2 * r + 2) * torch.finfo(dtype).eps * size + 1e-300).all()
