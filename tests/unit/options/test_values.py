"""Numbers: how large they may be, how they may be written, and that every source gets the same answer."""

import sys
import time
from pathlib import Path

import pytest

from switchlora.errors import UserError
from switchlora.options import values as v
from switchlora.options.fields import flag
from switchlora.training.options import PretrainOptions
from switchlora.training.resolve import resolve


def message_of(**values: object) -> str:
    with pytest.raises(UserError) as refused:
        resolve(PretrainOptions.merge(values))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "largest", "too_large"),
    [
        ("threads", 1024, 1025),
        ("threads", "1024", 10**12),
        ("steps", 2**31 - 1, 2**31),
        ("batch_size", 2**23, 2**63 - 1),
        ("seq_len", 2**26, "1e12"),
        ("micro_batch_size", 16, 2**31),
        ("eval_every", 2**31 - 1, 2**31),
        ("seed", 2**63 - 1, 2**63),
        ("tokenizer", f"train:{2**24}", f"train:{2**24 + 1}"),
        ("lr", 1e18, 1e19),
        ("other_lr", 1e18, "1e300"),
        ("weight_decay", 1e18, 10**400),
        ("lora_alpha", 1e18, "inf"),
        ("clip", 1e18, ".inf"),
        ("interval", float("inf"), 1e300),
    ],
)
def test_the_largest_value_passes_and_a_larger_one_is_one_line(name: str, largest: object, too_large: object) -> None:
    resolve(PretrainOptions.merge({name: largest}))
    message = message_of(**{name: too_large})
    assert message.startswith(flag(name) + " ")
    assert "at most" in message


@pytest.mark.parametrize(
    ("values", "way_out"),
    [
        ({"batch_size": 2**23 + 1}, "--batch-size 8388608 or less"),  # against the preset's 128 tokens
        ({"seq_len": 2**26 + 1}, "--batch-size 15 or less"),
        ({"seq_len": 2**31 - 1, "batch_size": 4}, "--seq-len 268435456 or less"),
    ],
)
def test_a_batch_that_fits_no_machine_is_refused(values: dict[str, object], way_out: str) -> None:
    assert way_out in message_of(**values)


def test_a_way_out_is_found_at_once_for_large_batches() -> None:
    started = time.monotonic()
    message = message_of(batch_size=2**29 - 1, micro_batch_size=2**29 - 2, seq_len=2)
    assert "--micro-batch-size 2304167 " in message
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("lr", "1:30"),
        ("lr", "1:30.5"),
        ("lr", "010"),
        ("seed", "010"),
        ("seed", "-010"),
        ("seed", "0x10"),
        ("steps", "0b11"),
        ("steps", "1:30"),
        ("batch_size", "08"),
        ("warmup", "0_8"),
    ],
)
def test_yaml_reads_no_number_as_another(name: str, written: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"{name}: {written}\n", encoding="utf-8")
    with pytest.raises(UserError) as refused:
        PretrainOptions.from_yaml(file)
    assert f"--config {file}: {message_of(**{name: written})}" == str(refused.value)
    assert f"{flag(name)} {written}: must be a" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [("lr", written, 0.5) for written in ("0.5", ".5", "5e-1", "5.0e-1", "5.e-1", "+0.5", "'0.5'")]
    + [("lr", "-0", 0.0), ("steps", "+7", 7), ("interval", ".inf", float("inf")), ("data", "007", ("007",))],
)
def test_yaml_still_reads_numbers(name: str, written: str, value: object, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"{name}: {written}\n", encoding="utf-8")
    assert getattr(PretrainOptions.from_yaml(file), name) == value


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_slow(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert message_of(track=name).endswith(f"pip install {name}, or --track none")


def test_a_folder_that_wandb_left_behind_is_not_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert "pip install wandb" in message_of(track="wandb")


def test_several_values_are_one_or_a_list_without_repeats() -> None:
    parse = v.several(v.integer(1))
    assert parse(4) == parse("4") == parse([4]) == parse(("4",)) == (4,)
    assert parse([16, "4"]) == (16, 4)
    for value, rule in (
        ([], "at least one"),
        ([4, 4.0], "must not name 4 twice"),
        ([4, "x"], "x must be a whole number"),
        (True, "must be a whole number"),
    ):
        with pytest.raises(v.Refused, match=rule):
            parse(value)
