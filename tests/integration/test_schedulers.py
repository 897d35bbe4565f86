"""Schedulers, clipping and closures of torch and transformers drive the optimizer like any other."""

import math

import pytest
import torch
from torch.optim import lr_scheduler

from tests.numerics.cases import assert_same, backward, config_of, everything, layers_of, start, train


def transformers_cosine(optimizer):
    from transformers import get_cosine_schedule_with_warmup

    return get_cosine_schedule_with_warmup(optimizer, 3, 20)


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
    "two lambdas": lambda o: lr_scheduler.LambdaLR(o, [lambda step: 0.5**step, lambda step: 1.0]),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=[0.02, 0.01], total_steps=20),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(o, 15)], [5]
    ),
    "transformers": transformers_cosine,
}


def steps(model, optimizer, scheduler, numbers):
    rates = []
    for step in numbers:
        train(model, optimizer, range(step, step + 1))
        scheduler.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    return rates


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_sets_the_rates_that_it_sets_for_torch_s_adamw(name):
    model, optimizer = start(config_of(), lr=0.01, other_lr=0.005)
    rates = steps(model, optimizer, SCHEDULERS[name](optimizer), range(15))
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    theirs = torch.optim.AdamW([{"params": parameters[0], "lr": 0.01}, {"params": parameters[1], "lr": 0.005}])
    scheduler, expected = SCHEDULERS[name](theirs), []
    for _ in range(15):
        theirs.step()
        scheduler.step()
        expected.append([group["lr"] for group in theirs.param_groups])
    assert rates == expected
    assert len({rate for rate, _ in rates}) > 5


@pytest.mark.parametrize("name", SCHEDULERS)
def test_optimizer_and_scheduler_are_saved_and_go_on_bitwise(name):
    def fresh():
        torch.manual_seed(0)
        model, optimizer = start(config_of(), lr=0.01, other_lr=0.005)
        return model, optimizer, SCHEDULERS[name](optimizer)

    model, optimizer, scheduler = fresh()
    steps(model, optimizer, scheduler, range(7))
    saved = [part.state_dict() for part in (model, optimizer, scheduler)]
    saved = [torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, s) for s in saved]
    steps(model, optimizer, scheduler, range(7, 14))
    others = fresh()
    for part, state in zip(others, saved, strict=True):
        part.load_state_dict(state)
    steps(*others, range(7, 14))
    assert_same(everything(others[0], others[1]), everything(model, optimizer))


def test_the_rate_is_the_one_of_the_step_on_w_too():
    """Rate 0 after a first step: nothing moves, whatever the moments hold."""
    model, optimizer = start(config_of(), weight_decay=0.1)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    steps(model, optimizer, scheduler, range(1))
    weights = [layer.weight.clone() for layer in layers_of(model)]
    steps(model, optimizer, scheduler, range(1, 9))
    assert all(torch.equal(layer.weight, w) for layer, w in zip(layers_of(model), weights, strict=True))


def test_rates_may_be_tensors():
    models = []
    for lr in (0.01, torch.tensor(0.01)):
        torch.manual_seed(0)
        model, optimizer = start(config_of(), dtype=torch.float64)
        for group in optimizer.param_groups:
            group["lr"] = lr
        train(model, optimizer, 5)
        models.append(layers_of(model)[0].weight.detach())
    torch.testing.assert_close(*models)


def test_clipping_counts_the_gradients_of_vectors_that_rest():
    """As in the official code: clipping sees raw gradients, before the step sets any to zero."""
    model, optimizer = start(config_of(interval=4.0, freeze_steps=2))
    train(model, optimizer, 3)
    backward(model, 3)
    trainable = [p for p in model.parameters() if p.requires_grad]
    total = math.sqrt(sum(float(p.grad.square().sum()) for p in trainable))
    assert any(optimizer.state[layer.lora_A]["frozen"].any() for layer in layers_of(model))
    norm = torch.nn.utils.clip_grad_norm_(trainable, 0.1 * total)
    assert float(norm) == pytest.approx(total, rel=1e-5)
    gradients = [p.grad.clone() for p in trainable]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(trainable, gradients, strict=True))  # left as they were


def test_hooks_and_the_order_of_torch_s_protocol():
    model, optimizer = start(config_of())
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(model, optimizer, 2)
    assert seen == ["before", "after"] * 2
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert "SwitchLora" in repr(optimizer)
