"""A switch, and any number of steps at a learning rate of 0, leave every bit of W where it was."""

import itertools

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from tests.numerics.cases import backward, config_of, layers_of, side_state, start, switch_alone, train

DTYPES = (torch.float32, torch.bfloat16, torch.float64)
KINDS = list(itertools.product(("cyclic", "random"), ("pool", "fresh"), ("switchlora", "lora")))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("order", "candidates", "init"), KINDS)
def test_no_bit_of_the_model_changes_at_lr_0(dtype, order, candidates, init):
    config = config_of(order=order, candidates=candidates, init_lora_weights=init)
    model, optimizer = start(config, dtype=dtype, lr=0.0, weight_decay=0.1)
    weights = [layer.weight.clone() for layer in layers_of(model)]
    factors = [layer.lora_A.clone() for layer in layers_of(model)]
    x = torch.randn(4, 7, dtype=dtype)
    before = model(x)
    train(model, optimizer, 30)
    assert optimizer.stats.total.switches_done > 20
    for layer, weight, factor in zip(layers_of(model), weights, factors, strict=True):
        assert torch.equal(layer.weight, weight)
        assert not torch.equal(layer.lora_A, factor)  # vectors were exchanged, so the test can fail
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("factor_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_bit_changes_at_lr_0_whatever_the_dtype_of_the_factors(factor_dtype):
    model, optimizer = start(config_of(), dtype=torch.bfloat16, factor_dtype=factor_dtype, lr=0.0)
    assert all(layer.lora_A.dtype == factor_dtype for layer in layers_of(model))
    weights = [layer.weight.clone() for layer in layers_of(model)]
    train(model, optimizer, 30)
    assert all(torch.equal(layer.weight, w) for layer, w in zip(layers_of(model), weights, strict=True))


@hypothesis.given(
    m=st.integers(3, 24), n=st.integers(3, 24), r=st.integers(2, 8), interval=st.floats(0.5, 8),
    dtype=st.sampled_from(DTYPES), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**40),
)  # fmt: skip
@hypothesis.settings(max_examples=40)
def test_a_switch_in_the_middle_of_training_does_not_touch_the_weight(m, n, r, interval, dtype, kind, seed):
    hypothesis.assume(r < min(m, n))
    order, candidates, init = kind
    config = config_of(
        r=r, interval=interval, freeze_steps=0, order=order, candidates=candidates, init_lora_weights=init, seed=seed
    )
    model, optimizer = start(config, (n, m), dtype)
    train(model, optimizer, 3)
    (layer,) = layers_of(model)
    for step in range(3, 8):
        weight = layer.weight.clone()
        backward(model, step)
        with torch.no_grad():
            switch_alone(optimizer, layer, step)
        assert torch.equal(layer.weight, weight)
        optimizer.step()
        optimizer.zero_grad()


def test_the_paper_s_base_moves_by_a_switch_so_that_the_sum_does_not():
    """The control: what the paper calls W_base does change, by s (b_old a - b_new a), where ours stays."""
    model, optimizer = start(config_of(interval=2.0, freeze_steps=1), dtype=torch.float64)
    (first, _) = layers_of(model)
    before = first.lora_B @ first.lora_A
    backward(model)
    with torch.no_grad():
        switch_alone(optimizer, first, 0)
    assert optimizer.outcomes[first.name].switches
    assert (first.lora_B @ first.lora_A - before).abs().max() > 1e-3
    assert side_state(optimizer, first, "A")["frozen"].any()
