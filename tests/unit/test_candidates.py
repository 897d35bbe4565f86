"""Pools keep what was switched out; fresh candidates keep nothing."""

import numpy as np
import pytest
import torch

from switchlora import SwitchLoraLinear, draws, state
from switchlora.candidates import Fresh, Pools, new_pool
from switchlora.exchange import DeviceVectors
from switchlora.initialisation import initial_slots, vector_bounds
from switchlora.rules import AdamW
from switchlora.switching import Chosen
from tests.numerics.cases import config_of, layers_of, side_state, start, train

CPU = torch.device("cpu")


def exchange(candidates, vectors, slots, outgoing, incoming, step=0):
    """Of one layer."""
    layers = np.zeros(len(slots), dtype=np.int64)
    chosen = Chosen(layers, np.array(slots), np.array(outgoing), np.array(incoming))
    DeviceVectors([vectors], candidates, first=0, fused=False).exchange(chosen, step)


@pytest.mark.parametrize("transposed", [False, True])  # vectors are views of B's columns
def test_a_pool_exchanges_rows(transposed):
    table = torch.arange(20.0).view(10, 2)
    storage = torch.tensor([[100.0, 101], [200, 201], [300, 301]])
    vectors = storage.T.contiguous().T if transposed else storage
    exchange(Pools([table], CPU), vectors, [2, 0], [7, 8], [1, 4])
    assert vectors.tolist() == [[8, 9], [200, 201], [2, 3]]
    assert table[7].tolist() == [300, 301]
    assert table[8].tolist() == [100, 101]
    untouched = [i for i in range(10) if i not in (7, 8)]
    assert torch.equal(table[untouched], torch.arange(20.0).view(10, 2)[untouched])


def test_what_went_out_comes_back_as_it_was():
    table, vectors = torch.randn(5, 3), torch.randn(2, 3)
    pools, trained = Pools([table], CPU), vectors[:1].clone()
    exchange(pools, vectors, [0], [4], [1])
    exchange(pools, vectors, [0], [1], [4])
    assert torch.equal(vectors[:1], trained)


def test_fresh_vectors_are_a_function_of_seed_name_side_step_and_slot():
    def vectors(seed=0, name="layer", side="A", step=3, slots=(0, 2)):
        active = torch.zeros(4, 50)
        layer = SwitchLoraLinear(50, 50, r=4, name=name)
        exchange(Fresh([layer], side, seed), active, slots, slots, slots, step)
        return active

    one = vectors()
    assert torch.equal(one, vectors())
    assert torch.equal(one[2], vectors(slots=(2,))[2])  # whatever else is switched
    assert not one[[1, 3]].any()
    assert one.abs().max() <= vector_bounds(50, 50, 4, "switchlora")["A"]
    for change in ({"seed": 1}, {"name": "other"}, {"side": "B"}, {"step": 4}):
        assert not (vectors(**change)[[0, 2]] == one[[0, 2]]).any(dim=1).all()


def test_fresh_vectors_have_the_initial_distribution_and_never_repeat():
    model, optimizer = start(config_of(candidates="fresh", interval=3.0, freeze_steps=1), (40, 40), lr=0.0)
    (layer,) = layers_of(model)
    bounds = vector_bounds(40, 40, 3, "switchlora")
    seen = {"A": [], "B": []}
    for step in range(120):
        train(model, optimizer, range(step, step + 1))
        for side, made in optimizer.outcomes[layer.name].switches.items():
            seen[side] += list((layer.lora_A if side == "A" else layer.lora_B.T).detach()[made.slots].clone())
    for side, vectors in seen.items():
        values = torch.stack(vectors).double()
        assert len({tuple(v.tolist()) for v in vectors}) == len(vectors) > 60
        assert values.abs().max() <= bounds[side]
        assert values.std().item() == pytest.approx(bounds[side] / 3**0.5, rel=0.05)
        assert abs(values.mean().item()) < 5 * bounds[side] / 3**0.5 / values.numel() ** 0.5
    assert "candidates" not in side_state(optimizer, layer, "A")  # nothing is stored


@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_new_pool_holds_the_active_vectors_in_their_slots(side, dtype):
    layer = SwitchLoraLinear(12, 9, r=4, name="layer", seed=3, dtype=dtype)
    slots = initial_slots(9, 12, 4)[side]
    with torch.no_grad():
        layer.lora_A.add_(1)  # a factor that is not as drawn, from a checkpoint say
    pool = new_pool(layer, side, 9, slots, torch.device("cpu"))
    active = (layer.lora_A if side == "A" else layer.lora_B.T).detach()
    assert pool.shape == (9, 12 if side == "A" else 9)
    assert pool.dtype == layer.lora_A.dtype  # candidates are as the factors
    assert torch.equal(pool[slots], active)
    key, bound = draws.key(3, "layer", f"candidates of {side}"), vector_bounds(9, 12, 4, "switchlora")[side]
    table = draws.uniform_vectors(key, torch.arange(9), pool.shape[1], bound, pool.dtype)
    assert torch.equal(pool[:5], table[:5])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("side", ["A", "B"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_pool_that_a_gpu_draws_is_that_of_the_host(side, dtype):
    layer, slots = SwitchLoraLinear(130, 90, r=4, name="layer", seed=3, dtype=dtype), initial_slots(130, 90, 4)[side]
    host = new_pool(layer, side, 90, slots, CPU)
    drawn = new_pool(layer.cuda(), side, 90, slots, CPU)
    assert drawn.is_pinned() and torch.equal(drawn, host)


@pytest.mark.parametrize(("where", "device"), [("cpu", "cpu"), ("model", "meta")])
def test_pools_are_where_the_configuration_says(monkeypatch, where, device):
    """The meta device stands for an accelerator; it has no vectors to copy, so no pool is made."""
    monkeypatch.setattr(state, "new_pool", lambda layer, letter, num, slots, device: torch.empty(num, device=device))
    layer = SwitchLoraLinear(12, 9, r=4, name="layer", seed=3, device="meta")
    made = state.factor_state(layer, "A", config_of(candidate_device=where), AdamW((0.9, 0.999), 1e-8), None)
    assert made["candidates"].device.type == device
    assert made["exp_avg"].device.type == "meta"  # where the model is
