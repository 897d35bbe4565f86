"""Pools in host memory beside a model elsewhere, whose copies take their time: they hold what pools beside it would."""

import contextlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from switchlora import layer_group, switching
from switchlora.candidates import Pools, StagedPools
from tests.numerics.cases import assert_same, config_of, everything, layers_of, side_state, start, train

CPU = torch.device("cpu")


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


@pytest.mark.parametrize("step", range(8, 14))  # in some of which something is switched
def test_a_state_of_the_same_step_that_is_loaded_gets_choices_of_its_own(monkeypatch, step):
    """What was foreseen was for the slots that were here before."""
    other, of_other = start(config_of(seed=1))
    train(other, of_other, step)
    found = []
    for staged in (False, True):
        if staged:
            monkeypatch.setattr(
                layer_group, "pools_of", lambda tensors, device: StagedPools(tensors, device, SlowStream())
            )
        torch.manual_seed(0)
        model, optimizer = start(config_of())
        train(model, optimizer, step)
        model.load_state_dict(other.state_dict())
        optimizer.load_state_dict(of_other.state_dict())
        train(model, optimizer, range(step, step + 10))
        found.append(everything(model, optimizer))
    assert_same(*found)


def vectors_of(layer, optimizer):
    """All of side A, active and idle; at a learning rate of 0 they stay what they are."""
    state = side_state(optimizer, layer, "A")
    optimizer.state_dict()  # files what is on its way
    idle = np.setdiff1d(np.arange(len(state["candidates"])), state["slots"].numpy())
    return sorted(map(tuple, [*state["candidates"][idle].tolist(), *layer.lora_A.tolist()]))
