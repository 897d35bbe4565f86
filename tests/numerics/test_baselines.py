"""The optimizers that are there to be compared with: each against its paper's rule, and the traps of such code."""

import copy

import pytest
import torch
from torch import nn

from switchlora.baselines import apollo
from switchlora.baselines.apollo import Apollo, draw
from switchlora.baselines.limiter import limited_
from switchlora.baselines.racs import Racs, scales
from switchlora.baselines.together import Together
from tests.numerics import paper_rules
from tests.numerics.cases import assert_same, chain, everything, train


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)], ids=str)
@pytest.mark.parametrize("per_channel", [True, False])
def test_apollo_scales_the_whole_gradient(shape, per_channel):
    """Its first step by the paper's formulas, and that the update is not of rank r."""
    W = nn.Parameter(torch.zeros(shape))
    optimizer = Apollo([W], lr=0.1, r=2, alpha=3.0, per_channel=per_channel, eps=1e-12)
    W.grad = torch.randn(shape)
    G = W.grad.T if shape[0] > shape[1] else W.grad
    R = draw(0, number=0, period=0, r=2, m=6) @ G
    dim = 0 if per_channel else None
    scale = R.sign().norm(dim=dim) / R.norm(dim=dim)  # Adam's first direction is the sign
    optimizer.step()
    expected = -0.1 * 3.0 * G * scale
    torch.testing.assert_close(W.T if shape[0] > shape[1] else W, nn.Parameter(expected), rtol=1e-5, atol=1e-6)
    assert torch.linalg.matrix_rank(W.detach()) == 6
    assert optimizer.state[W]["exp_avg"].shape == (2, 10)


def test_apollos_update_grows_by_a_hundredth_a_step_at_most():
    W = nn.Parameter(torch.zeros(6, 10))
    optimizer = Apollo([W], lr=0.1, r=2)
    for size in (1.0, 100.0, 1e4):
        before, norm = W.detach().clone(), float(optimizer.state[W]["norm"]) if optimizer.state else None
        W.grad = size * torch.randn(6, 10)
        optimizer.step()
        moved = float((W.detach() - before).norm()) / 0.1
        assert norm is None or moved <= 1.0101 * norm


def test_apollos_projection_is_drawn_once_in_a_gap_and_again_after_a_resume(monkeypatch):
    drawn = []
    monkeypatch.setattr(apollo, "draw", lambda *names: drawn.append(names[2]) or draw(*names))
    W = nn.Parameter(torch.zeros(6, 10))
    optimizer = Apollo([W], lr=0.1, r=2, gap=3)
    for _ in range(7):
        W.grad = torch.randn(6, 10)
        optimizer.step()
    assert drawn == [0, 1, 2]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()
    assert drawn == [0, 1, 2, 2]
    assert set(optimizer.state[W]) == {"step", "norm", "exp_avg", "exp_avg_sq"}


def test_the_limiter_lets_go_after_a_gradient_of_zero():
    norm = torch.tensor(0.0)
    for size, expected in ((0.0, 0.0), (4.0, 4.0), (8.0, 4.04), (1.0, 1.0)):
        update = limited_(torch.tensor([[size, 0.0]]), norm)
        assert float(norm) == pytest.approx(expected)
        assert float(update.norm()) == pytest.approx(expected)


def racs_moves(gradients, make=Racs):
    W = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = make([W], lr=0.1)
    moves = []
    for G in gradients:
        before, W.grad = W.detach().clone(), G.clone()
        optimizer.step()
        moves.append((before - W.detach()) / 0.1)
    return moves, optimizer.state[W]


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)], ids=str)
def test_racs_is_the_papers(shape):
    torch.manual_seed(1)
    gradients = [size * torch.randn(shape) for size in (1.0, 1.0, 30.0, 0.1)]
    moves, state = racs_moves(gradients)
    expected = paper_rules.racs([G.double() for G in gradients], alpha=0.05, beta=0.9)
    for ours, theirs in zip(moves, expected, strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-6)
    assert sum(value.numel() for value in state.values()) == shape[0] + shape[1] + 1


def test_racs_scales_are_the_best_approximation_of_rank_one():
    squares = torch.rand(6, 10) + 0.5
    U, S, Vh = torch.linalg.svd(squares)
    q, s = scales(squares.sqrt())
    torch.testing.assert_close(q[:, None] * s, S[0] * U[:, :1] @ Vh[:1], rtol=1e-4, atol=1e-5)


def test_the_size_of_the_gradient_is_nothing_to_racs_and_something_to_the_package():
    """Why it is ours: there, the update shrinks as the gradient grows."""
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
    torch.manual_seed(1)
    gradients = [torch.randn(6, 10) for _ in range(4)]
    once = racs_moves(gradients)[0]
    for size in (1e-12, 1e-3, 1e3, 1e12):
        for a, b in zip(racs_moves([size * G for G in gradients])[0], once, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    theirs = [racs_moves([size * G for G in gradients], pytorch_optimizer.RACS)[0][0] for size in (1e3, 1e6)]
    assert float(theirs[1].norm() / theirs[0].norm()) == pytest.approx(1e-3, rel=1e-2)


def test_racs_leaves_rows_and_columns_without_a_gradient_alone():
    G = torch.randn(6, 10)
    G[2], G[:, 3] = 0.0, 0.0
    (first, second), _ = racs_moves([G, torch.zeros(6, 10)])
    assert torch.isfinite(first).all() and not second.any()
    assert not first[2].any() and not first[:, 3].any() and first.abs().sum() > 0


def test_together_is_one_optimizer_that_goes_on_from_its_state():
    def built():
        torch.manual_seed(0)
        model = chain((7, 13, 9))
        matrices = [p for p in model.parameters() if p.dim() == 2]
        vectors = [p for p in model.parameters() if p.dim() == 1]
        parts = [Apollo([{"params": matrices}], lr=1e-2, r=2, gap=3), torch.optim.AdamW(vectors, lr=1e-3)]
        return model, Together(parts)

    model, optimizer = built()
    other, resumed = built()
    train(model, optimizer, 4)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, steps in (((model, optimizer), range(4, 9)), ((other, resumed), range(4, 9))):
        one[1].param_groups[0]["lr"] = 5e-3
        train(*one, steps)
    assert_same(everything(model, optimizer), everything(other, resumed))
    assert optimizer.optimizers[0].param_groups[0]["lr"] == 5e-3
