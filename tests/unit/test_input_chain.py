"""Layers that read the same input: chained, they give what they give apart, and autograd has nothing to add up."""

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from switchlora import SwitchLora, SwitchLoraConfig, convert, token_blocks
from tests.unit.chained import Block, apart, assert_same, block, depth, gradients, inputs, total

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}


class Calls(TorchDispatchMode):
    """The names of what is computed inside, and of what shape."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.made.append((func.overloadpacket.__name__, tuple(result.shape)))
        return result


@pytest.mark.parametrize("used", [(0, 1, 2), (0,), (1,), (2,), (0, 2)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("leading", "block_tokens"), [((5,), 1024), ((2, 3), 2), ((), 1024), ((0,), 1024)], ids=str)
def test_chained_layers_give_what_they_give_apart(monkeypatch, used, dtype, leading, block_tokens):
    monkeypatch.setattr(token_blocks, "BLOCK_TOKENS", block_tokens)
    model, x = block(dtype, bias=len(used) != 2), inputs(dtype, leading)
    outputs = model(x)
    total([outputs[i] for i in used]).backward()
    chained = gradients(model)
    apart(monkeypatch)
    others = model(x)
    total([others[i] for i in used]).backward()
    assert all(torch.equal(y, other) for y, other in zip(outputs, others, strict=True))
    assert_same(chained, gradients(model), TOLERANCE[dtype])


def num_sums(model: Block) -> int:
    """How often what is passed back to the hidden state is added up by autograd."""
    loss = total(model(inputs()))
    with Calls() as calls:
        loss.backward()
    return sum(name in ("add", "add_") and shape == (5, 7) for name, shape in calls.made)


def test_the_products_do_the_sum(monkeypatch):
    model = block()
    assert num_sums(model) == 0
    apart(monkeypatch)
    assert num_sums(model) == 2


def test_under_autocast_the_input_is_cast_once(monkeypatch):
    model, x = block(torch.float32), inputs(torch.float32)
    results = []
    for expected in (1, 3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = model.hidden(x).float()
            with Calls() as calls:
                outputs = [model.q(h), model.k(h), model.v(h)]
        assert sum(call == ("_to_copy", (5, 7)) for call in calls.made) == expected
        total([y.float() for y in outputs]).backward()
        results.append(gradients(model))
        apart(monkeypatch)
    assert_same(*results, tolerance=2e-2)


def test_another_autocast_mode_is_another_input():
    model = block(torch.float32)
    h = model.hidden(inputs(torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.q(h).dtype == torch.bfloat16
    assert model.k(h).dtype == torch.float32


def test_what_is_written_into_the_input_is_read():
    model = block()
    h = model.hidden(inputs())
    model.q(h)
    with torch.no_grad():
        h.mul_(2)
    assert torch.equal(model.k(h), nn.functional.linear(h, model.k.weight, model.k.bias))


def test_cross_attention_sums_what_belongs_together(monkeypatch):
    def pass_back() -> list[Tensor | None]:
        model = block()
        h, encoded = model.hidden(inputs()), model.hidden(inputs(leading=(4,))).cos()
        total([model.q(h), model.k(encoded), model.v(encoded)]).backward()
        return gradients(model)

    chained = pass_back()
    apart(monkeypatch)
    assert_same(chained, pass_back())


def test_a_chain_has_every_layer_once():
    model = block()
    h = model.hidden(inputs())
    kept = [call(h) for _ in range(4) for call in (model.q, model.k, model.v)]
    assert [depth(y) for y in kept] == [1, 2, 3] * 4


def test_after_a_backward_pass_a_new_chain_begins():
    model = block()
    h = model.hidden(inputs())
    first = model.q(h)
    first.sum().backward(retain_graph=True)
    second = model.k(h)
    assert (depth(first), depth(second)) == (1, 1)
    second.sum().backward()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
@pytest.mark.parametrize("leaf", [True, False])
def test_outputs_may_be_differentiated_one_by_one(order, leaf):
    """As apart: from a leaf in any order, from anything else with retain_graph."""
    model = block()
    h = model.hidden(inputs())
    h = h.detach().requires_grad_() if leaf else h
    outputs = [model.q(h), model.k(h), model.v(h)]
    for i in order:
        outputs[i].sin().sum().backward(retain_graph=not leaf)
    found = gradients(model)
    total(model(inputs())).backward()
    at_once = gradients(model)
    start = 2 if leaf else 0  # the first layer's two, which a leaf knows nothing of
    assert_same(found[start:], at_once[start:])


def test_without_a_backward_pass_nothing_is_held():
    model = block()
    gc.disable()
    try:
        h = model.hidden(inputs())
        outputs = [model.q(h), model.k(h), model.v(h)]
        watched = [weakref.ref(tensor) for tensor in (h, *outputs)]
        del h, outputs
        assert [reference() for reference in watched] == [None] * 4
    finally:
        gc.enable()


def test_inputs_and_outputs_are_saved_as_they_are():
    model = block()
    h = model.hidden(inputs())
    y = model.q(h)
    model.k(h)
    for tensor in (h, y):
        torch.save(tensor, stored := io.BytesIO())
        stored.seek(0)
        assert torch.equal(torch.load(stored, weights_only=True), tensor)


@pytest.mark.parametrize("leading", [(5,), (2, 3), ()], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_may_be_written_into(monkeypatch, leading, bias):
    """As those of nn.Linear may, such as by ReLU(inplace=True), while layers before and after read the same input."""

    def written() -> list[Tensor | None]:
        model = block(bias=bias)
        h = model.hidden(inputs(leading=leading))
        q, k, v = model.q(h), model.k(h), model.v(h)
        q.relu_()
        k.add_(1).mul_(2)
        nn.functional.dropout(v, p=0.0, inplace=True)
        total([q, k, v]).backward()
        return gradients(model)

    chained = written()
    apart(monkeypatch)
    assert_same(chained, written())


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_that_are_reshaped_at_once_chain_as_well(bias):
    """As in attention, where nobody keeps the output itself."""
    model = block(bias=bias)
    h = model.hidden(inputs(leading=(2, 3)))
    heads = [call(h).view(6, -1, 1).transpose(0, 1) for call in (model.q, model.k, model.v)]
    assert [depth(y) for y in heads] == [1, 2, 3]


def test_a_call_without_gradients_is_no_part_of_it():
    model = block()
    h = model.hidden(inputs())
    q = model.q(h)
    with torch.no_grad():
        assert not model.k(h).requires_grad
    v = model.v(h)
    assert (depth(q), depth(v)) == (1, 2)


def test_torch_func_sees_the_same_gradients():
    model, x = block(), inputs()
    parameters = dict(model.named_parameters())
    ours = torch.func.grad(lambda p: total(torch.func.functional_call(model, p, (x,))))(parameters)
    total(model(x)).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("leading", "block_tokens"), [((5,), 1024), ((2, 6), 2)], ids=str)
def test_gradients_of_single_examples_are_those_one_by_one(monkeypatch, leading, block_tokens):
    monkeypatch.setattr(token_blocks, "BLOCK_TOKENS", block_tokens)
    model, x = block(), inputs(leading=leading)
    parameters = dict(model.named_parameters())

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return total(torch.func.functional_call(model, p, (x,)))

    at_once = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, one in enumerate(x):
        for name, gradient in torch.func.grad(loss)(parameters, one).items():
            torch.testing.assert_close(at_once[name][i], gradient, rtol=1e-12, atol=1e-13)
    assert torch.equal(torch.func.jacrev(model.q)(torch.ones(7, dtype=torch.float64)), model.q.weight)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoints_compute_the_same(use_reentrant):
    model, x = block(), inputs().requires_grad_()
    total(list(checkpoint(lambda x: tuple(model(x)), x, use_reentrant=use_reentrant))).backward()
    checkpointed = gradients(model)
    total(model(x)).backward()
    assert_same(checkpointed, gradients(model))


def test_a_step_inside_the_backward_pass_is_the_same_step():
    results = []
    for fused_backward in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleDict({"first": nn.Linear(6, 7), **{name: nn.Linear(7, 9) for name in "qkv"}})
        config = SwitchLoraConfig(r=3, interval=8.0, freeze_steps=2, exclude_modules=["first"])
        convert(model, config)
        optimizer = SwitchLora(model, config, total_steps=20, lr=1e-2, fused_backward=fused_backward)
        for _ in range(5):
            h = torch.tanh(model["first"](inputs(torch.float32)))
            total([model[name](h) for name in "qkv"]).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append([parameter.detach() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_layer_whose_output_is_not_used_is_left_alone_though_another_reads_its_input():
    """The backward pass of k goes through q, on the way to what both of them read."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Linear(7, 7), "q": nn.Linear(7, 9), "k": nn.Linear(7, 9)})
    config = SwitchLoraConfig(r=3)
    convert(model, config)
    optimizer = SwitchLora(model, config, total_steps=10, lr=0.1, fused_backward=True)
    before = model["q"].weight.clone(), model["k"].weight.clone()
    h = model["embed"](torch.randn(5, 7)).tanh()
    unused, used = model["q"](h), model["k"](h)
    used.square().sum().backward()
    optimizer.step()
    assert unused.requires_grad
    assert torch.equal(model["q"].weight, before[0])
    assert not torch.equal(model["k"].weight, before[1])


def test_a_copy_of_a_model_is_a_model_of_its_own():
    model = block()
    outputs = model(inputs())
    other = copy.deepcopy(model)
    total(other(inputs())).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    total(outputs).backward()
    assert_same(gradients(model), gradients(other))
