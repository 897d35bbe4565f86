"""What is refused before anything is built: contestants that do not fit together."""

import dataclasses
from pathlib import Path

import pytest
import torch

from switchlora.bench import room
from switchlora.bench.contestants import Contestant, contestants, why_absent
from switchlora.bench.options import METHODS, BenchOptions
from switchlora.bench.rounds import batch
from switchlora.bench.trainee import base_model, build
from switchlora.errors import UserError
from switchlora.memory_report import memory

CPU, R = torch.device("cpu"), 16
FP32 = BenchOptions(model="tiny", ranks=R, seq_len=16)
BF16 = BenchOptions(model="tiny", ranks=R, seq_len=16, dtype="bf16", factor_dtype="bf16", moments="bf16")
WIDE = BenchOptions(model="tiny", ranks=R, seq_len=16, dtype="bf16", moments="fp32")


@pytest.mark.filterwarnings("ignore")  # of other people's packages, at import
@pytest.mark.parametrize("options", [FP32, BF16, WIDE], ids=["fp32", "bf16", "fp32 moments"])
@pytest.mark.parametrize("method", [*METHODS, "never switched"])
def test_what_a_contestant_holds_is_known_beforehand(method: str, options: BenchOptions) -> None:
    twin = method == "never switched"
    row = Contestant("switchlora" if twin else method, None if method == "full" else R, never_switches=twin)
    if absence := why_absent(row.method, options):
        pytest.skip(absence)
    trainee = build(row, base_model(options, CPU), options, CPU, copied=False)
    trainee.backward(batch(options, 2, 0))
    trainee.optimizer.step()
    held, found = room.held_by(row, options), memory(trainee.model, trainee.optimizer)
    assert held.candidate_bytes == found.candidate_host_bytes
    assert held.gradient_bytes == found.gradient_bytes
    state = found.weight_bytes + found.optimizer_device_bytes + found.optimizer_host_bytes
    assert held.device_bytes == pytest.approx(state, rel=0.2 if method == "galore" else 0.01)  # LAPACK leaves it more
    assert held.device_bytes <= state, "what cannot be known is left out"


def test_all_are_there_at_once_and_gradients_of_one() -> None:
    rows = [Contestant("full"), Contestant("switchlora", R)]
    full, ours = (room.held_by(row, FP32) for row in rows)
    of_device, of_candidates = room.needed_bytes(rows, FP32)
    base = full.gradient_bytes  # as many numbers
    assert of_device == base + full.device_bytes + ours.device_bytes + full.gradient_bytes
    assert of_candidates == ours.candidate_bytes


def test_more_than_the_memory_is_refused_with_what_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "host_memory_bytes", lambda: 24_000_000_000)
    options = BenchOptions(model="1.3b", methods=("switchlora", "lora-adapter"), sequences=1)
    rows = contestants(options)
    with pytest.raises(UserError) as error:
        room.require_memory(rows, options, CPU)
    message = str(error.value)
    assert "\n" not in message and "and this machine has 24.0 GB; give fewer --methods or --ranks" in message
    num_layers = int(message.partition("--num-layers ")[2].split()[0])
    assert 1 <= num_layers < 24
    room.require_memory(rows, dataclasses.replace(options, num_layers=num_layers), CPU)
    with pytest.raises(UserError):
        room.require_memory(rows, dataclasses.replace(options, num_layers=num_layers + 1), CPU)


@pytest.mark.parametrize("num_layers", [25, 2**31 - 1])
def test_however_many_layers_are_asked_for_the_answer_is_the_same(monkeypatch: pytest.MonkeyPatch, num_layers) -> None:
    monkeypatch.setattr(room, "host_memory_bytes", lambda: 24_000_000_000)
    options = BenchOptions(model="1.3b", methods=("switchlora",), ranks=(512,), sequences=1, num_layers=num_layers)
    with pytest.raises(UserError, match="or --num-layers 11 at most"):
        room.require_memory(contestants(options), options, CPU)


def test_rows_that_will_not_be_measured_need_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """At rank h/8 the cost model takes thin products everywhere, so `switchlora-thin` is not measured."""
    options = BenchOptions(model="tiny", methods=("full", "switchlora"), ranks=R, sequences=1)
    rows = contestants(options)
    monkeypatch.setattr(room, "host_memory_bytes", lambda: sum(room.needed_bytes(rows, options)))
    room.require_memory(rows, options, CPU)
    room.require_memory([*rows, Contestant("switchlora-thin", R), Contestant("peft", R, "absent")], options, CPU)
    with pytest.raises(UserError):
        room.require_memory([*rows, Contestant("peft", R)], options, CPU)


def test_a_container_has_less_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "limit").write_text("1000000\n")
    monkeypatch.setattr(room, "LIMITS", [tmp_path / "absent", tmp_path / "max"])
    assert room.host_memory_bytes() > 10**8
    monkeypatch.setattr(room, "LIMITS", [tmp_path / "max", tmp_path / "limit"])
    assert room.host_memory_bytes() == 1_000_000
