"""Muon's rule on the factors: against torch's Muon, against the decomposition it stands for, and under switching."""

import pytest
import torch
from torch import nn

from switchlora import SwitchLora, SwitchLoraConfig, convert, memory
from switchlora.baselines.muon import Muon
from switchlora.errors import UserError
from switchlora.muon import RMS, muon_, orthogonalise
from tests.numerics.cases import config_of, layers_of, side_state, start, train


@pytest.mark.parametrize("shape", [(8, 32), (32, 8), (16, 16), (1, 5)], ids=str)
def test_singular_values_become_nearly_one_and_directions_stay(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    U, _, Vh = torch.linalg.svd(matrix, full_matrices=False)
    found = U.T @ orthogonalise(matrix) @ Vh.T
    torch.testing.assert_close(found, torch.diag(found.diagonal()), atol=1e-10, rtol=0)
    assert found.diagonal().min() > 0.5
    assert found.diagonal().max() < 1.3


def test_zero_stays_zero_and_a_zero_vector_takes_no_part():
    matrix = torch.randn(5, 9, dtype=torch.float64)
    matrix[2] = 0
    live = [0, 1, 3, 4]
    assert torch.equal(orthogonalise(torch.zeros(3, 4)), torch.zeros(3, 4))
    assert not orthogonalise(matrix)[2].any()
    torch.testing.assert_close(orthogonalise(matrix)[live], orthogonalise(matrix[live]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)], ids=str)
def test_the_rule_is_that_of_torchs_muon(shape):
    """Whose Newton-Schulz steps are in bfloat16: the same to what that resolves."""
    theirs = nn.Parameter(torch.zeros(shape))
    muon = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    ours, momentum_buffer = torch.zeros(shape), torch.zeros(shape)
    for _ in range(5):
        theirs.grad = torch.randn(shape)
        muon.step()
        ours -= 0.1 * muon_(theirs.grad, momentum_buffer, 0.9)
    assert (ours - theirs.detach()).norm() <= 0.02 * ours.norm()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_full_rank_muon_on_the_cpu_is_torchs_with_another_rounding(weight_decay):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    start = torch.randn(12, 40)
    one, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours, theirs = Muon([one], **settings), torch.optim.Muon([other], **settings)
    for _ in range(5):
        one.grad = torch.randn(12, 40)
        other.grad = one.grad.clone()
        ours.step()
        theirs.step()
    assert (one - other).norm() <= 0.02 * (other - start).norm()
    assert ours.state_dict()["state"][0].keys() == theirs.state_dict()["state"][0].keys()


def test_an_update_has_the_root_mean_square_it_should_have():
    update = muon_(torch.randn(64, 256), torch.zeros(64, 256), 0.95)
    assert float(update.square().mean().sqrt()) == pytest.approx(RMS, rel=0.2)


def test_it_has_one_moment():
    bytes_of = {}
    for rule in ("adamw", "muon"):
        model, config = nn.Sequential(nn.Linear(20, 24, bias=False)), config_of()
        convert(model, config)
        optimizer = SwitchLora(model, config, total_steps=10, lr=1e-2, rule=rule)
        bytes_of[rule] = memory(model, optimizer).optimizer_device_bytes
        assert ("momentum_buffer" in optimizer.state[model[0].lora_A]) == (rule == "muon")
    assert bytes_of["adamw"] - bytes_of["muon"] == 4 * model[0].r * (20 + 24)  # one moment of both factors


def test_switching_resets_single_momenta_and_w_follows_the_factors():
    config = config_of(r=6, interval=4.0, freeze_steps=2)
    model, optimizer = start(config, (20, 24), rule="muon")
    (layer,) = layers_of(model)
    base = layer.weight.detach() - layer.scaling * layer.lora_B.detach() @ layer.lora_A.detach()
    num_resets = 0
    for step in range(20):
        factors = {letter: getattr(layer, f"lora_{letter}").detach().clone() for letter in ("A", "B")}
        W = layer.weight.detach().clone()
        train(model, optimizer, range(step, step + 1))
        for letter, other in (("A", "B"), ("B", "A")):
            state, switches = side_state(optimizer, layer, letter), optimizer.outcomes[layer.name].switches
            if other in switches:
                momenta = state["momentum_buffer"] if letter == "A" else state["momentum_buffer"].T
                after = layer.lora_A if letter == "A" else layer.lora_B.T
                before = factors["A"] if letter == "A" else factors["B"].T
                slots = switches[other].slots
                assert not momenta[slots].any()
                assert torch.equal(after[slots], before[slots])  # they rest
                num_resets += len(slots)
        assert not torch.equal(layer.weight, W)
    assert num_resets > 10, num_resets
    assert torch.isfinite(base).all()


def test_what_it_does_not_go_with_is_refused():
    model, config = nn.Sequential(nn.Linear(20, 24)), SwitchLoraConfig(r=4)
    convert(model, config)
    for arguments, message in (
        ({"rule": "lion"}, "rule='lion': must be 'adamw' or 'muon'"),
        ({"rule": "muon", "momentum": 1.0}, "momentum=1.0: must be a number in"),
        ({"rule": "muon", "fused": True}, "there are no kernels for rule='muon'"),
    ):
        with pytest.raises(UserError, match=message.replace("(", r"\(")):
            SwitchLora(model, config, total_steps=10, lr=1e-2, **arguments)
