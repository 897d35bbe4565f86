"""Rounds: everyone once, on the same tokens, in an order that changes and can be repeated."""

import gc
import itertools

import pytest
import torch

from switchlora.bench.contestants import Contestant, why_absent
from switchlora.bench.galore import NEVER, UPDATE_GAP, amortised
from switchlora.bench.options import BenchOptions
from switchlora.bench.rounds import batch, garbage_between_rounds, run_rounds, shuffled
from switchlora.bench.trainee import base_model, build

OPTIONS = BenchOptions(model="tiny", ranks=16, seq_len=8, steps=4, warmup_steps=1)
CPU = torch.device("cpu")


def test_a_batch_is_a_function_of_seed_and_number() -> None:
    tokens = batch(OPTIONS, 3, 7)
    assert tokens.shape == (3, 8) and 0 <= int(tokens.min()) <= int(tokens.max()) < 2048
    assert torch.equal(tokens, batch(OPTIONS, 3, 7))
    assert not torch.equal(tokens, batch(OPTIONS, 3, 8))
    assert not torch.equal(tokens, batch(BenchOptions(model="tiny", seq_len=8, seed=1), 3, 7))


def test_nobody_always_follows_the_same_neighbour() -> None:
    orders = [shuffled(OPTIONS, 6, number) for number in range(30)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert orders == [shuffled(OPTIONS, 6, number) for number in range(30)]
    pairs = [pair for order in orders for pair in itertools.pairwise(order)]
    assert len(set(pairs)) == 30, "each of the 30 ordered pairs comes up"
    assert {order[0] for order in orders} == set(range(6))


def test_rounds_leave_a_record_of_everyone() -> None:
    base = base_model(OPTIONS, CPU)
    trainees = [build(Contestant(*who), base, OPTIONS, CPU) for who in (("full",), ("switchlora", 16))]
    said: list[str] = []
    rounds = run_rounds(trainees, OPTIONS, 2, CPU, said.append)
    assert [sorted(order) for order in rounds.order] == [["full", "switchlora r=16"]] * 4
    assert {name: len(record.seconds) for name, record in rounds.records.items()} == {"full": 4, "switchlora r=16": 4}
    assert rounds.records["full"].num_switches is None
    assert (rounds.records["switchlora r=16"].num_switches or 0) > 0
    assert "2 methods, 4 rounds" in said[0]


def test_the_twin_that_never_switches_is_the_same_otherwise() -> None:
    base = base_model(OPTIONS, CPU)
    twin = build(Contestant("switchlora", 16, never_switches=True), base, OPTIONS, CPU)
    record = run_rounds([twin], OPTIONS, 2, CPU, lambda line: None).records["switchlora r=16, never switched"]
    assert record.num_switches == 0 and {seconds["switch"] for seconds in record.seconds} == {0.0}
    switching = build(Contestant("switchlora", 16), base, OPTIONS, CPU)
    assert [p.shape for p in twin.model.parameters()] == [p.shape for p in switching.model.parameters()]


def test_galores_decomposition_is_timed_apart() -> None:
    if absence := why_absent("galore", OPTIONS):
        pytest.skip(absence)
    trainee = build(Contestant("galore", 16), base_model(OPTIONS, CPU), OPTIONS, CPU)
    rounds = run_rounds([trainee], OPTIONS, 2, CPU, lambda line: None)
    assert len(rounds.records["galore r=16"].refresh_seconds) >= 1
    gaps = {state["projector"].update_proj_gap for state in trainee.optimizer.state.values() if "projector" in state}
    assert gaps == {NEVER}


def test_the_amortised_step_has_its_share_of_the_decomposition() -> None:
    assert amortised(1.0, 1.0 + UPDATE_GAP * 0.5, 1.0) == pytest.approx(1.5)
    assert amortised(1.0, 0.9, 1.0) == 1.0


def test_the_garbage_collector_comes_back() -> None:
    with pytest.raises(ZeroDivisionError), garbage_between_rounds() as collect:
        assert not gc.isenabled()
        collect()
        raise ZeroDivisionError
    assert gc.isenabled()
