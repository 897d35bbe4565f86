"""torch.compile takes the layer whole: no graph break, the same numbers."""

import pytest
import torch

from tests.numerics.cases import CHAIN, chain, config_of, layers_of, start, train

# torch 2.13 itself: dynamo instantiates every autograd.Function that it traces.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(compiled: bool, backend: str, autocast: bool, polar: float, steps: int = 6):
    torch.manual_seed(0)
    model, optimizer = start(config_of(polar=polar), (8, 24, 16, 8))
    call = torch.compile(model, fullgraph=True, backend=backend) if compiled else model
    losses = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(2, 10, 8, generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = (call(x).float() - x.flip(0)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses), [layer.weight.detach() for layer in layers_of(model)]


@pytest.mark.parametrize(
    ("backend", "autocast", "polar"),
    [("aot_eager", False, 0.0), ("aot_eager", True, 0.0), ("inductor", False, 0.0), ("aot_eager", False, 0.5)],
)
def test_a_compiled_model_trains_as_the_plain_one(backend, autocast, polar):
    losses, weights = run(True, backend, autocast, polar)
    plain_losses, plain_weights = run(False, backend, autocast, polar)
    tolerance = 2e-2 if autocast else 1e-5
    torch.testing.assert_close(losses, plain_losses, rtol=tolerance, atol=tolerance)
    for one, other in zip(weights, plain_weights, strict=True):
        assert (one - other).norm() <= tolerance * other.norm()


def test_other_batch_shapes_compile_too():
    model, optimizer = start(config_of())
    call = torch.compile(model, fullgraph=True, backend="aot_eager")
    for shape in ((4, 7), (6, 7), (2, 3, 7), (7,)):
        x = torch.randn(shape)
        call(x).sum().backward()
        compiled = layers_of(model)[0].lora_A.grad.clone()
        optimizer.zero_grad()
        model(x).sum().backward()
        torch.testing.assert_close(compiled, layers_of(model)[0].lora_A.grad)
        optimizer.zero_grad()


def test_the_wrapper_that_compile_makes_changes_no_choice():
    """Names are those at conversion, so a prefix of a wrapper ("_orig_mod.") does not change what is drawn."""
    from switchlora import SwitchLora, convert

    made = []
    for wrap in (False, True):
        torch.manual_seed(0)
        model, config = chain(CHAIN), config_of(order="random")
        convert(model, config)
        wrapped = torch.compile(model, backend="eager") if wrap else model
        optimizer = SwitchLora(wrapped, config, total_steps=100, lr=1e-2)
        train(model, optimizer, 10)
        made.append(layers_of(model)[0].weight)
    assert torch.equal(*made)
