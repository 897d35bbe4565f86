"""Pools keep what was switched out; fresh candidates keep nothing."""

import contextlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from switchlora import SwitchLoraLinear, draws, layer_group, state, switching
from switchlora.candidates import Fresh, Pools, StagedPools, new_pool
from switchlora.initialisation import initial_slots, vector_bounds
from switchlora.layer_group import DeviceVectors
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


class SlowStream:
    """A side stream of the CPU, whose copies are done but do not admit it before `release`."""

    def __init__(self):
        self.num_passed, self.num_marks, self.is_inside = 0, 0, False

    @contextlib.contextmanager
    def inside(self):
        self.is_inside = True
        yield
        self.is_inside = False

    def take_over(self, tensor):
        pass

    hand_over = take_over

    def mark(self):
        self.num_marks += 1
        return SlowMark(self, self.num_marks)

    def release(self, num):
        self.num_passed = min(self.num_passed + num, self.num_marks)


class SlowMark:
    def __init__(self, stream, number):
        self.stream, self.number = stream, number

    def query(self):
        return self.number <= self.stream.num_passed

    def synchronize(self):
        self.stream.num_passed = max(self.stream.num_passed, self.number)


def chosen(random, num_layers, c, num):
    """Which rows of which layers: so many of each, in random order."""
    return np.repeat(np.arange(num_layers), num), np.concatenate(
        [random.permutation(c)[:num] for _ in range(num_layers)]
    )


@pytest.mark.parametrize("pace", [0, 1, 2])  # blocks that come back in the time of one step: one is put in each
@pytest.mark.parametrize("foreseen", [False, True])
def test_pools_elsewhere_hold_what_pools_beside_the_model_hold(pace, foreseen):
    random, tables = np.random.default_rng(0), [torch.randn(7, 3) for _ in range(2)]
    plain = Pools([table.clone() for table in tables], CPU)
    stream = SlowStream()
    staged = StagedPools([table.clone() for table in tables], CPU, stream)
    for step in range(30):
        layers, incoming = chosen(random, 2, 7, 3)
        if foreseen and step % 5:  # at times what comes is not what was foreseen
            staged.prefetch(layers, incoming, step)
        elif foreseen:
            staged.prefetch(*chosen(random, 2, 7, 3), step)
        taken = staged.take(layers, incoming, incoming, step)
        assert torch.equal(taken, plain.take(layers, incoming, incoming, step))
        layers, outgoing = chosen(random, 2, 7, 3)
        rows = torch.randn(6, 3)
        staged.put(layers, outgoing, rows)
        plain.put(layers, outgoing, rows)
        stream.release(pace)
    staged.settle()
    assert all(map(torch.equal, staged.tensors, plain.tensors))


def test_what_was_foreseen_may_be_taken_layer_by_layer_and_in_its_own_step_alone():
    pools = StagedPools([torch.randn(7, 3) for _ in range(3)], CPU, SlowStream())
    layers, incoming = np.array([0, 0, 2, 2, 2]), np.array([5, 1, 0, 6, 3])
    pools.prefetch(layers, incoming, 8)
    fetched = [pools.tensors[layer][row].clone() for layer, row in zip(layers, incoming, strict=True)]
    for tensor in pools.tensors:
        tensor.zero_()  # what is read now is not what was fetched
    for part in (slice(2, 5), slice(0, 2)):
        assert torch.equal(pools.take(layers[part], incoming[part], incoming[part], 8), torch.stack(fetched[part]))
    assert not pools.take(layers[:2], incoming[:2], incoming[:2], 9).any()
    assert not pools.take(layers[3:], incoming[3:] - 1, incoming[3:] - 1, 8).any()


@pytest.mark.parametrize("fused_backward", [False, True])
def test_no_step_but_the_first_fetches_what_it_takes(monkeypatch, fused_backward):
    fetched = []
    monkeypatch.setattr(layer_group, "pools_of", lambda tensors, device: StagedPools(tensors, device, SlowStream()))
    model, optimizer = start(config_of(interval=8.0, decay_ratio=None), fused_backward=fused_backward)
    train(model, optimizer, 1)
    fetch = StagedPools._fetch
    monkeypatch.setattr(StagedPools, "_fetch", lambda self, *rows: fetched.append("fetch") or fetch(self, *rows))
    prefetch = StagedPools.prefetch
    monkeypatch.setattr(
        StagedPools, "prefetch", lambda self, *rows: fetched.append("foreseen") or prefetch(self, *rows)
    )
    planned, plan = [], switching.plan
    monkeypatch.setattr(switching, "plan", lambda *given: planned.append(given[-2]) or plan(*given))
    train(model, optimizer, range(1, 30))
    assert optimizer.stats.total.switches_done > 20
    assert sorted(planned) == sorted(list(range(2, 31)) * len(optimizer._layer_groups))  # once, in the step before
    assert fetched.count("fetch") == fetched.count("foreseen") > 10


def test_what_has_not_come_back_is_not_filed():
    stream, table = SlowStream(), torch.zeros(5, 2)
    pools, one = StagedPools([table], CPU, stream), np.zeros(1, dtype=np.int64)
    pools.put(one, one + 3, torch.ones(1, 2))
    pools.prefetch(one, one, 0)
    assert not table.any()
    stream.release(1)
    pools.prefetch(one, one, 1)
    assert table[3].tolist() == [1, 1]


class Copies(TorchDispatchMode):
    """Counts copies from one tensor to another on a stream: between device and host."""

    def __init__(self, stream):
        super().__init__()
        self.stream, self.num = stream, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num += self.stream.is_inside and func in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
        return func(*args, **(kwargs or {}))


def test_the_number_of_copies_knows_neither_vectors_nor_layers_nor_their_order():
    random, nums = np.random.default_rng(0), []
    for num_layers, num in ((1, 1), (1, 25), (3, 25)):
        stream = SlowStream()
        pools = StagedPools([torch.randn(64, 4) for _ in range(num_layers)], CPU, stream)
        layers, incoming = chosen(random, num_layers, 64, num)
        with Copies(stream) as copies:
            pools.prefetch(layers, incoming, 0)
            rows = pools.take(layers, incoming, incoming, 0)
            pools.put(layers, incoming, rows)
        nums.append(copies.num)
    assert nums == [2, 2, 2]


@pytest.mark.parametrize("staged", [False, True])
def test_a_step_that_failed_after_its_switches_can_be_done_again_and_no_vector_is_lost(monkeypatch, staged):
    if staged:
        monkeypatch.setattr(layer_group, "pools_of", lambda tensors, device: StagedPools(tensors, device, SlowStream()))
    model, optimizer = start(config_of(interval=10.0, decay_ratio=None), lr=0.0)
    layer = layers_of(model)[0]
    before = vectors_of(layer, optimizer)
    train(model, optimizer, 3)
    step_others = optimizer._step_others

    def fail(*given):
        monkeypatch.setattr(optimizer, "_step_others", step_others)
        raise RuntimeError("in the middle")

    for step in range(3, 60):
        if step % 4 == 0:
            monkeypatch.setattr(optimizer, "_step_others", fail)
            with pytest.raises(RuntimeError, match="in the middle"):
                train(model, optimizer, range(step, step + 1))
        train(model, optimizer, range(step, step + 1))
    assert optimizer.stats.total.switches_done > 5
    assert vectors_of(layer, optimizer) == before


def vectors_of(layer, optimizer):
    """All of side A, active and idle; at a learning rate of 0 they stay what they are."""
    state = side_state(optimizer, layer, "A")
    optimizer.state_dict()  # files what is on its way
    idle = np.setdiff1d(np.arange(len(state["candidates"])), state["slots"].numpy())
    return sorted(map(tuple, [*state["candidates"][idle].tolist(), *layer.lora_A.tolist()]))
