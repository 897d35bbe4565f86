"""Dynamic Subset Tuning against a plain reference, and the file that it leaves."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from switchlora.errors import UserError
from switchlora.finetuning.delta import apply_delta_, read_delta, write_delta
from switchlora.finetuning.subset import Subset, num_kept

SHAPES = {"a": (7, 5), "b": (11,), "c": (3, 4, 2)}


def parameters() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def reference(seed: dict, moved: dict, epsilon: float, silo: str) -> dict[str, torch.Tensor]:
    """Sort every entry of a silo by how far it is, in plain Python, stable in its order; keep the first ones."""
    kept = {name: seed[name].clone() for name in seed}
    for names in [list(seed)] if silo == "model" else [[name] for name in seed]:
        entries = [(name, i) for name in names for i in range(seed[name].numel())]
        far = sorted(entries, key=lambda e: -abs(float(moved[e[0]].view(-1)[e[1]] - seed[e[0]].view(-1)[e[1]])))
        for name, i in far[: math.floor(epsilon * len(entries))]:
            kept[name].view(-1)[i] = moved[name].view(-1)[i]
    return kept


@pytest.mark.parametrize("silo", ["tensor", "model"])
@pytest.mark.parametrize("epsilon", [0.1, 0.37, 1.0])
def test_step_by_step_against_the_reference(silo, epsilon):
    ours, seed = parameters(), parameters()
    theirs = {name: tensor.clone() for name, tensor in seed.items()}
    subset = Subset(ours, epsilon, silo)
    generator, ever, dropped = (
        torch.Generator().manual_seed(1),
        {name: torch.zeros(shape, dtype=bool) for name, shape in SHAPES.items()},
        0,
    )
    for _ in range(12):
        for name in ours:
            update = torch.randn(ours[name].shape, generator=generator, dtype=torch.float64)
            update = (4 * update).round() / 4  # many entries move equally far
            ours[name] += update
            theirs[name] += update
        subset.project_()
        theirs = reference(seed, theirs, epsilon, silo)
        for name in ours:
            assert torch.equal(ours[name], theirs[name])
            differs = ours[name] != seed[name]
            dropped += int((ever[name] & ~differs).sum())
            ever[name] |= differs
        num = sum(int((ours[name] != seed[name]).sum()) for name in ours)
        assert num <= epsilon * sum(tensor.numel() for tensor in seed.values())
    assert dropped > 0 or epsilon == 1  # what was chosen once may be dropped later


@pytest.mark.parametrize(
    ("epsilon", "silo", "parts"),
    [
        (0.05, "tensor", ["--epsilon 0.05", "b, which has 11", "the smallest is 0.0909091", "--silo model"]),
        (0.014, "model", ["--epsilon 0.014", "the model's 70", "the smallest is 0.0142858"]),
    ],
)
def test_an_epsilon_that_keeps_nothing(epsilon, silo, parts):
    with pytest.raises(UserError) as refused:
        Subset(parameters(), epsilon, silo)
    assert all(part in str(refused.value) for part in parts), str(refused.value)


@pytest.mark.parametrize(("epsilon", "silo"), [(0.091, "tensor"), (0.0143, "model")])
def test_the_smallest_that_is_named_is_accepted(epsilon, silo):
    Subset(parameters(), epsilon, silo)


def test_one_entry_in_ten_million():
    p = {"w": torch.zeros(10_000_000), "v": torch.zeros(5)}
    subset = Subset(p, 1e-7, "model")
    p["w"] += 0.25
    p["w"][123_456] = 0.5
    subset.project_()
    assert p["w"].nonzero().tolist() == [[123_456]]


def test_as_many_entries_as_the_decimal_says():
    assert [num_kept(epsilon, 100) for epsilon in (0.29, 0.57, 0.01, 0.0099)] == [29, 57, 1, 0]
    assert num_kept(1 / 64, 64) == 1


def test_a_delta_brings_back_the_bits(tmp_path: Path):
    seed = {name: tensor.bfloat16() if name == "b" else tensor for name, tensor in parameters().items()}
    trained = {name: tensor.clone() for name, tensor in seed.items()} | {"score.weight": torch.randn(2, 3)}
    trained["a"][2, 3] = 17
    trained["b"][10] = -1
    size = write_delta(tmp_path / "delta.safetensors", seed, trained, {"task": "rte"})
    assert size == (tmp_path / "delta.safetensors").stat().st_size < 1500
    (tmp_path / "any").touch()
    assert (tmp_path / "delta.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode
    delta = read_delta(str(tmp_path / "delta.safetensors"))
    assert delta.about == {"task": "rte"}
    weights = {name: tensor.clone() for name, tensor in seed.items()} | {"score.weight": torch.zeros(2, 3)}
    apply_delta_(weights, delta)
    assert all(torch.equal(weights[name], trained[name]) for name in trained)
    with pytest.raises(UserError, match="was made from other weights"):
        apply_delta_(weights, delta)


def test_files_that_are_no_deltas(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        read_delta(str(tmp_path / "no"))
    (tmp_path / "x").write_text("text")
    with pytest.raises(UserError, match="cannot be read"):
        read_delta(str(tmp_path / "x"))
    save_file({"a": torch.zeros(1)}, tmp_path / "y")
    with pytest.raises(UserError, match="is no delta"):
        read_delta(str(tmp_path / "y"))


def test_the_same_delta_is_the_same_file(tmp_path: Path):
    seed = parameters()
    trained = {name: tensor + 1 for name, tensor in seed.items()}
    for number in range(8):
        write_delta(tmp_path / str(number), seed, trained, {"task": "rte", "seed": 1})
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1


def test_a_damaged_delta_is_refused(tmp_path: Path):
    seed = parameters()
    trained = {name: tensor + 1 for name, tensor in seed.items()}
    path = tmp_path / "delta.safetensors"
    write_delta(path, seed, trained, {"task": "rte"})
    whole = path.read_bytes()
    places = (len(whole) - 3, len(whole) - 200, whole.index(b"rte"), whole.index(b'seed\\": ') + 10)
    for place in places:  # a value, an index, what it is about, the seed's checksum
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UserError, match="copy it again"):
            read_delta(str(path))
    path.write_bytes(whole)
    assert read_delta(str(path)).about == {"task": "rte"}
