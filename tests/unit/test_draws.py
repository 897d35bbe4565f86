"""Draws are pure functions of (seed, name, purpose, step), and the whole and its shards agree."""

import itertools

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from switchlora import draws

SEEDS = st.integers(0, 2**63 - 1)


def test_keys_tell_every_part_apart():
    values = itertools.product((0, 1, 2**63 - 1), ("", "a", "a.b", "1"), ("p", "q"), (0, 1, 10, 39_999))
    keys = [draws.key(*parts) for parts in values]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)
    assert draws.key(1, "1", "p", 1) != draws.key(11, "", "p", 1) != draws.key(1, "", "1p", 1)


def test_keys_are_the_same_on_every_machine():
    """Written down, so that no later version draws otherwise without anyone noticing."""
    assert draws.key(0, "layer", "purpose", 3) == 6416858408259470137
    bits = draws.random_bits(1, torch.tensor([0, 1]), torch.tensor([0, 1, 2**31]))
    assert bits.dtype == torch.int32
    assert bits.tolist() == [[1492470133, 305810056, -1664399183], [0, 1492470133, -1999038377]]
    assert draws.SeededDraws(7).choose("l", "A", 3, torch.arange(20), 4).tolist() == [15, 2, 3, 18]


def plain_bits(key, rows, columns):
    """random_bits in Python integers, from its description."""

    def mix(x):
        x ^= x >> 16
        x = x * 0x7FEB352D & 0xFFFFFFFF
        x ^= x >> 15
        x = x * 0x846CA68B & 0xFFFFFFFF
        return x ^ (x >> 16)

    def signed(x):
        return x - 2**32 if x >= 2**31 else x

    low, high = key & 0xFFFFFFFF, key >> 32
    return [
        [signed(mix(mix(int(i) & 0xFFFFFFFF ^ low) + mix(int(j) & 0xFFFFFFFF ^ high) & 0xFFFFFFFF)) for j in columns]
        for i in rows
    ]


@hypothesis.given(key=st.integers(0, 2**64 - 1), rows=st.lists(st.integers(0, 2**40), max_size=6),
                  columns=st.lists(st.integers(0, 2**40), max_size=6))  # fmt: skip
def test_bits_equal_the_hash_in_plain_integers(key, rows, columns):
    rows, columns = torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)
    expected = torch.tensor(plain_bits(key, rows, columns), dtype=torch.int32).view(len(rows), len(columns))
    assert torch.equal(draws.random_bits(key, rows, columns), expected)


@hypothesis.given(seed=SEEDS, m=st.integers(1, 30), n=st.integers(1, 30), data=st.data())
def test_a_shard_draws_what_the_whole_draws(seed, m, n, data):
    key = draws.key(seed, "layer", "purpose", 7)
    whole = draws.random_bits(key, torch.arange(m), torch.arange(n))
    rows = torch.tensor(data.draw(st.lists(st.integers(0, m - 1), max_size=5)), dtype=torch.int64)
    columns = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), max_size=5)), dtype=torch.int64)
    assert torch.equal(draws.random_bits(key, rows, columns), whole[rows][:, columns])
    vectors = draws.uniform_vectors(key, torch.arange(m), n, 0.5, torch.float32)
    assert torch.equal(draws.uniform_vectors(key, rows, n, 0.5, torch.float32), vectors[rows])


def test_bits_are_even_and_independent_of_their_neighbours():
    """Each of 32 bits is set half of the time, agrees with its neighbours and with other steps half of the time."""
    grids = [draws.random_bits(draws.key(0, "layer", "p", t), torch.arange(400), torch.arange(300)) for t in (0, 1)]
    bits = (grids[0][..., None] >> torch.arange(32)) & 1
    bound = 5 * 0.5 / (400 * 300) ** 0.5  # five standard deviations, fixed seed
    assert (bits.double().mean((0, 1)) - 0.5).abs().max() < bound
    other = (grids[1][..., None] >> torch.arange(32)) & 1
    for one, two in (
        (bits[1:], bits[:-1]),
        (bits[:, 1:], bits[:, :-1]),
        (bits, other),
        (bits[..., 1:], bits[..., :-1]),
    ):
        assert ((one == two).double().mean((0, 1)) - 0.5).abs().max() < 1.05 * bound
    assert grids[0].unique().numel() > 0.9999 * grids[0].numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_vectors_are_uniform_and_centred(dtype):
    bound, vectors = 0.3, draws.uniform_vectors(5, torch.arange(500), 400, 0.3, dtype)
    assert vectors.dtype == dtype
    values = vectors.double().flatten()
    assert values.abs().max() <= bound * (1 + 2**-8)
    assert abs(values.mean()) < 5 * bound / 3**0.5 / len(values) ** 0.5
    assert values.std() == pytest.approx(bound / 3**0.5, rel=5e-3)
    counts = torch.histc(values, 20, -bound, bound)
    assert (counts / len(values) * 20 - 1).abs().max() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_extreme_draws_are_symmetric_and_inside_the_bound(monkeypatch, dtype):
    extremes = torch.tensor([[0, -1]], dtype=torch.int32)  # no bit set, all bits set
    monkeypatch.setattr(draws, "random_bits", lambda key, rows, columns: extremes)
    low, high = draws.uniform_vectors(0, torch.arange(1), 2, 1.0, dtype)[0].tolist()
    assert low == -high == 2.0**-24 - 1


def test_uniforms_fill_the_unit_interval():
    values = torch.tensor([draws.SeededDraws(3).uniform("layer", step) for step in range(4000)], dtype=torch.float64)
    assert values.min() >= 0
    assert values.max() < 1
    assert (values.sort().values - torch.linspace(0, 1, 4000, dtype=torch.float64)).abs().max() < 0.03  # KS, p < 1e-3


@hypothesis.given(seed=SEEDS, num=st.integers(0, 12), step=st.integers(0, 10**6))
def test_chosen_candidates_are_different_and_idle(seed, num, step):
    idle = torch.arange(3, 40, 3)
    chosen = draws.SeededDraws(seed).choose("layer", "A", step, idle, num)
    assert len(chosen) == len(set(chosen.tolist())) == num
    assert set(chosen.tolist()) <= set(idle.tolist())
    assert chosen.dtype == torch.int64


def test_every_candidate_is_chosen_equally_often():
    idle, counts = torch.arange(10), torch.zeros(10)
    for step in range(3000):
        counts[draws.SeededDraws(0).choose("layer", "A", step, idle, 3)] += 1
    assert (counts / 900 - 1).abs().max() < 0.12  # 900 expected, standard deviation 25


def test_choices_depend_on_nothing_else():
    """Not on torch's generator, not on the order of calls, not on other layers, not on the instance."""
    idle = torch.arange(50)

    def calls(order):
        made = {}
        for name, step in order:
            torch.rand(3)
            source = draws.SeededDraws(9)
            made[name, step] = (source.uniform(name, step), source.choose(name, "B", step, idle, 5).tolist())
        return made

    asked = list(itertools.product(("a", "b", "c"), range(4)))
    torch.manual_seed(1)
    one = calls(asked)
    torch.manual_seed(2)
    assert calls(reversed(asked)) == one
    alone = calls([("b", 2)])
    assert alone[("b", 2)] == one[("b", 2)]
    assert len({tuple(chosen) for _, chosen in one.values()}) == len(asked)
    source = draws.SeededDraws(9)
    assert source.choose("a", "A", 0, idle, 5).tolist() != source.choose("a", "B", 0, idle, 5).tolist()
