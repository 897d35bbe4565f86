"""bfloat16 weights move as float32 ones do, thanks to stochastic rounding; rounding to nearest swallows updates.

The motion of a run is its displacement over 200 steps at lr 2e-4, projected on that of the same run in float32: 1 if
nothing is lost on average. The gradients are the same in both runs to the precision of bfloat16, since the loss is
linear in the outputs.
"""

import pytest
import torch
from torch import Tensor, nn

from switchlora import SwitchLora, SwitchLoraConfig, convert, moving, weight_update

M, N, STEPS, LR = 80, 96, 200, 2e-4


def displacements(
    dtype: torch.dtype, factor_dtype: torch.dtype | None, moment_dtype: torch.dtype | None = None, **settings
) -> dict[str, Tensor]:
    """By how much the dense weight, the factors and an ordinary weight of the same shape moved."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.Linear(N, M, bias=False), "lm_head": nn.Linear(N, M, bias=False)})
    config = SwitchLoraConfig(r=8, decay_ratio=None, **settings)
    model.load_state_dict({name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()})
    model.to(dtype)
    convert(model, config, factor_dtype=factor_dtype)
    with torch.no_grad():  # all runs start from the same numbers
        for factor in (model["body"].lora_A, model["body"].lora_B):
            factor.copy_(factor.bfloat16())
    stepper = SwitchLora(model, config, total_steps=STEPS, lr=LR, moment_dtype=moment_dtype)
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    targets = torch.randn(N, M)
    for step in range(STEPS):
        x = torch.randn(64, N, generator=torch.Generator().manual_seed(step))
        weights = (x @ targets).to(dtype)
        ((model["body"](x.to(dtype)) + model["lm_head"](x.to(dtype))) * weights).float().mean().backward()
        stepper.step()
        stepper.zero_grad()
    return {name: p.detach().double() - before[name] for name, p in model.named_parameters()}


def motion(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    return {name: float((ours[name] * reference[name]).sum() / reference[name].square().sum()) for name in reference}


@pytest.fixture(scope="module", params=[{"interval": float("inf")}, {"interval": 40.0}], ids=["still", "switching"])
def reference(request):
    return request.param, displacements(torch.float32, None, **request.param)


def to_nearest(target: Tensor, value: Tensor, key: int, first_row: int = 0) -> Tensor:
    return target.copy_(value)


@pytest.mark.parametrize("moment_dtype", [None, torch.bfloat16], ids=["fp32 moments", "bf16 moments"])
@pytest.mark.parametrize("factor_dtype", [None, torch.bfloat16], ids=["fp32 factors", "bf16 factors"])
def test_all_of_the_motion_is_there_with_stochastic_rounding(reference, factor_dtype, moment_dtype):
    settings, expected = reference
    moved = motion(displacements(torch.bfloat16, factor_dtype, moment_dtype, **settings), expected)
    assert all(0.95 < share < 1.05 for share in moved.values()), moved


def test_much_of_it_is_lost_with_the_weight_rounded_to_nearest(reference, monkeypatch):
    monkeypatch.setattr(weight_update, "store_", to_nearest)
    settings, expected = reference
    moved = motion(displacements(torch.bfloat16, None, **settings), expected)
    assert moved["body.weight"] < 0.9, moved


def test_most_of_it_is_lost_with_everything_rounded_to_nearest(reference, monkeypatch):
    monkeypatch.setattr(weight_update, "store_", to_nearest)
    monkeypatch.setattr(moving, "store_", to_nearest)
    settings, expected = reference
    moved = motion(displacements(torch.bfloat16, torch.bfloat16, **settings), expected)
    assert moved["body.weight"] < 0.2, moved
    assert moved["lm_head.weight"] < 0.7, moved


def decayed_second_moment(moment_dtype: torch.dtype | None) -> Tensor:
    """v of 2 x 400 factors in bfloat16 after 100 steps without gradients, from 1."""
    model = nn.Sequential(nn.Linear(400, 8, dtype=torch.bfloat16))
    config = SwitchLoraConfig(r=2, interval=float("inf"))
    convert(model, config, factor_dtype=torch.bfloat16)
    stepper = SwitchLora(model, config, total_steps=10, lr=0.0, moment_dtype=moment_dtype)
    state = stepper.state[model[0].lora_A]
    state["exp_avg_sq"].fill_(1.0)
    state["step"].fill_(1)  # at 0 the rule takes moments to be zero
    for _ in range(100):
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        stepper.step()
    return state["exp_avg_sq"].float()


def test_the_second_moment_decays_also_beside_bf16_parameters():
    """It is kept in float32 there: in bfloat16, rounded to nearest, 0.999 v is v for ever."""
    torch.testing.assert_close(decayed_second_moment(None), torch.full((2, 400), 0.999**100), rtol=1e-5, atol=0)


def test_a_second_moment_in_bf16_decays_on_average_and_not_at_all_rounded_to_nearest(monkeypatch):
    v = decayed_second_moment(torch.bfloat16)
    assert abs(float(v.mean()) / 0.999**100 - 1) < 0.005
    assert float(v.std()) < 0.03
    monkeypatch.setattr(moving, "store_", to_nearest)
    assert torch.equal(decayed_second_moment(torch.bfloat16), torch.ones(2, 400))
