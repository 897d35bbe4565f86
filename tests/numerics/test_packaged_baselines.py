"""GaLore, Fira and Stable-SPAM as their methods build them: the papers' rules, and state that is plain data."""

import copy
import dataclasses
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from switchlora.baselines.together import Together
from switchlora.methods import METHODS
from switchlora.training.options import PretrainOptions
from switchlora.training.resolve import resolve
from tests.numerics import paper_rules
from tests.numerics.cases import assert_same, chain, everything, train

PACKAGED = ("galore", "fira", "stable-spam")
SHAPES = [(6, 10), (10, 6), (7, 7)]
SIZES = (1.0, 1.0, 30.0, 0.1, 1.0)  # of the gradients: a spike among them


def options_of(name: str, **settings: Any) -> PretrainOptions:
    """Of a run with rank 2, whatever the model."""
    return dataclasses.replace(resolve(PretrainOptions(method=name, lr=0.1, **settings)), r=2)


def of_matrix(name: str, W: Tensor, **settings: Any) -> tuple[nn.Parameter, Any]:
    """A matrix that the method takes for a hidden one, and its optimizer."""
    model = nn.Sequential(nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype))
    with torch.no_grad():
        model[0].weight.copy_(W)
    return model[0].weight, METHODS[name].optimizer(model, options_of(name, **settings))


def moves(name: str, gradients: list[Tensor], **settings: Any) -> list[Tensor]:
    """What every step takes from a matrix, divided by the learning rate."""
    W, optimizer = of_matrix(name, torch.zeros_like(gradients[0]), **settings)
    optimizer.optimizers[0].update_proj_gap = 3  # of Stable-SPAM: the others have it in their groups
    taken = []
    for G in gradients:
        before, W.grad = W.detach().clone(), G.clone()
        optimizer.step()
        assert optimizer.param_groups[0]["lr"] == 0.1
        taken.append((before - W.detach()) / 0.1)
    return taken


def gradients_of(shape: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [size * torch.randn(shape, dtype=torch.float64, generator=generator) for size in SIZES]


def transposed(matrices: list[Tensor], shape: tuple[int, int]) -> list[Tensor]:
    """As the papers have it, m <= n; the package takes a square matrix, too, from its other side."""
    return [matrix.T for matrix in matrices] if is_turned(shape) else matrices


def is_turned(shape: tuple[int, int]) -> bool:
    return shape[0] >= shape[1]


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=lambda text, step=step: f"step {step}: {text}")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_galore_is_the_papers(shape: tuple[int, int], alpha: float | None) -> None:
    """Its first projection lasts one step less than the others, which the page says."""
    gradients = gradients_of(shape)
    ours = transposed(moves("galore", gradients, projection_gap=3, projection_scale=alpha), shape)
    rule = (transposed(gradients, shape), 2, alpha or 0.25, (1, 3), is_turned(shape))
    assert_close(ours, paper_rules.galore(*rule))
    assert {int(torch.linalg.matrix_rank(update, atol=1e-6)) for update in ours} == {2}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_fira_is_the_papers(shape: tuple[int, int], alpha: float | None) -> None:
    """With alpha where the paper has it, of the whole update: the package's `scale` would fail here.

    The limiter compares norms before Adam's bias correction, as the official code does, which the page says.
    """
    gradients = gradients_of(shape)
    ours = transposed(moves("fira", gradients, projection_gap=3, projection_scale=alpha), shape)
    rule = (transposed(gradients, shape), 2, alpha or 0.25, (1, 3), is_turned(shape))
    assert_close(ours, paper_rules.fira(*rule, limit_raw=True))
    assert_close(ours[:1], paper_rules.fira(*rule, limit_raw=False)[:1])
    assert int(torch.linalg.matrix_rank(ours[0], atol=1e-6)) == min(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_stable_spam_is_as_others_cite_the_paper(shape: tuple[int, int]) -> None:
    gradients = gradients_of(shape)
    expected = paper_rules.stable_spam(gradients, reset_every=3)
    assert_close(moves("stable-spam", gradients), expected)
    without = paper_rules.stable_spam(gradients, reset_every=9)
    assert not torch.allclose(expected[-1], without[-1], rtol=1e-2), "the reset makes no difference to this test"


def test_stable_spam_resets_every_thousand_steps() -> None:
    _, optimizer = of_matrix("stable-spam", torch.zeros(3, 4))
    assert optimizer.optimizers[0].update_proj_gap == 1000


@pytest.mark.parametrize("name", [*PACKAGED, "racs", "apollo"])
def test_weight_decay_is_decoupled_and_not_multiplied_by_alpha(name: str) -> None:
    start = torch.randn(6, 10)
    W, optimizer = of_matrix(name, start, weight_decay=0.5)
    W.grad = torch.zeros_like(start)
    optimizer.step()
    torch.testing.assert_close(W.detach(), start * (1 - 0.1 * 0.5))


def built(name: str, dtype: torch.dtype) -> tuple[nn.Sequential, Together]:
    torch.manual_seed(0)
    model = chain((7, 13, 9), dtype)
    optimizer = METHODS[name].optimizer(model, options_of(name, projection_gap=3))
    assert isinstance(optimizer, Together)
    return model, optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [*PACKAGED, "racs", "apollo", "muon"])
@pytest.mark.parametrize("steps", [0, 1, 3, 4])
def test_a_state_is_plain_data_from_which_a_run_goes_on_bitwise(name: str, dtype: torch.dtype, steps: int) -> None:
    """The traps: a Python object in the state of GaLore, a count outside of it in Stable-SPAM, fp32 state of bf16."""
    model, optimizer = built(name, dtype)
    train(model, optimizer, steps)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    other, resumed = built(name, dtype)
    train(other, resumed, 2)  # what it knows must go
    saved = torch.load(file, weights_only=True)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert_same(flat(model, optimizer), flat(other, resumed))
    for one in ((model, optimizer), (other, resumed)):
        train(*one, range(steps, steps + 4))
    assert_same(flat(model, optimizer), flat(other, resumed))


def flat(model: nn.Module, optimizer: Together) -> dict[str, Any]:
    """`everything`, with what is inside the projectors."""
    whole = everything(model, optimizer)  # type: ignore[arg-type]
    inside = {
        f"{name}.{key}": v for name, value in whole.items() if isinstance(value, dict) for key, v in value.items()
    }
    return {name: value for name, value in whole.items() if not isinstance(value, dict)} | inside


def test_asking_for_a_state_leaves_the_optimizer_as_it_is() -> None:
    for name in PACKAGED:
        (model, optimizer), (other, undisturbed) = built(name, torch.float32), built(name, torch.float32)
        for step in range(4):
            copy.deepcopy(optimizer.state_dict())
            train(model, optimizer, range(step, step + 1))
            train(other, undisturbed, range(step, step + 1))
        assert_same(flat(model, optimizer), flat(other, undisturbed))
