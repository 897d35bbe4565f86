"""The order of blocks: one to one, different per epoch and seed, and a pure function of (seed, step)."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from switchlora.data import Blocks, batch
from switchlora.data.order import permute, shuffled_indices


class Counting:
    """Tokens 0, 1, 2, ...: block i of length 2 is [2i, 2i + 1]."""

    bytes_per_token = 1.0

    def __init__(self, num_tokens: int):
        self.num_tokens = num_tokens

    def num_available(self, wanted: int) -> int:
        return self.num_tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop, dtype=np.int64)


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 5))
def test_permutation_is_one_to_one(num_blocks: int, seed: int, epoch: int) -> None:
    order = permute(np.arange(num_blocks), num_blocks, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(num_blocks))


def test_permutation_differs_by_seed_and_epoch() -> None:
    places = np.arange(1000)
    orders = {tuple(permute(places, 1000, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert tuple(places) not in orders


def test_permutation_looks_random() -> None:
    order = permute(np.arange(4096), 4096, seed=1, epoch=0)
    assert abs(np.corrcoef(np.arange(4096), order)[0, 1]) < 0.06  # about 4 standard deviations
    assert (np.abs(np.diff(order)) < 8).mean() < 0.02  # neighbours do not stay neighbours


def test_places_can_be_asked_for_one_by_one_in_a_huge_corpus() -> None:
    num_blocks = 10**12 + 39
    some = permute(np.array([0, 5, num_blocks - 1]), num_blocks, seed=3, epoch=7)
    assert some[1] == permute(np.array([5]), num_blocks, seed=3, epoch=7)[0]
    assert len(set(some.tolist())) == 3
    assert all(0 <= index < num_blocks for index in some.tolist())


@pytest.mark.parametrize("batch_size", [1, 3, 10, 25])
def test_batches_visit_each_block_once_per_epoch(batch_size: int) -> None:
    blocks = Blocks(Counting(20), 2)  # ten blocks
    steps = [batch(blocks, seed=5, step=step, batch_size=batch_size) for step in range(30 // batch_size + 1)]
    rows = torch.cat(steps)[:30]
    assert rows.dtype == torch.int64
    assert steps[0].shape == (batch_size, 2)
    for epoch in range(3):
        assert sorted(rows[10 * epoch : 10 * epoch + 10, 0].tolist()) == list(range(0, 20, 2))
    assert rows[:10].tolist() != rows[10:20].tolist()


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    blocks = Blocks(Counting(2000), 2)
    last = batch(blocks, seed=5, step=40, batch_size=8)
    assert torch.equal(last, batch(Blocks(Counting(2000), 2), seed=5, step=40, batch_size=8))
    assert not torch.equal(last, batch(blocks, seed=6, step=40, batch_size=8))
    assert not torch.equal(last, batch(blocks, seed=5, step=41, batch_size=8))


def test_the_order_does_not_depend_on_the_batch_size() -> None:
    positions = np.arange(100)
    whole = shuffled_indices(positions, num_blocks=37, seed=2)
    assert whole.tolist() == [int(shuffled_indices(positions[i : i + 1], num_blocks=37, seed=2)[0]) for i in range(100)]


def test_unshuffled_blocks_come_in_their_own_order() -> None:
    blocks = Blocks(Counting(10), 2, shuffled=False)  # five blocks
    assert batch(blocks, seed=9, step=1, batch_size=3)[:, 0].tolist() == [6, 8, 0]
