"""`switchlora spectrum` on runs of a second or two."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from switchlora.errors import UserError
from switchlora.report.spectrum_shapes import mean_spectrum
from switchlora.spectrum.command import JSON, PAGE, PICTURE, spectrum
from switchlora.spectrum.options import SpectrumOptions
from switchlora.training.loop import pretrain
from switchlora.training.options import PretrainOptions

MODEL = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs: lora with r = 4, and full."""
    folder = tmp_path_factory.mktemp("spectrum")
    (folder / "config.json").write_text(json.dumps(MODEL))
    assert argparse.__file__ is not None
    (folder / "text.txt").write_bytes(Path(argparse.__file__).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWITCHLORA_CACHE", str(folder / "cache"))
        for method in ("lora", "full"):
            pretrain(
                PretrainOptions(
                    output=str(folder / method), data=(str(folder / "text.txt"),), tokenizer="train:300",
                    model=str(folder / "config.json"), method=method, r=4, steps=6, batch_size=4, seq_len=32,
                    device="cpu", threads=1, eval_tokens=300,
                )
            )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def found(runs: Path) -> dict[str, Any]:
    """What it finds for both."""
    folders = (str(runs / "lora"), str(runs / "full"))
    return spectrum(SpectrumOptions(checkpoint=folders, output=str(runs / "out"), device="cpu", threads=1))


def test_what_lora_changed_has_its_rank_and_what_full_rank_changed_has_more(found: dict[str, Any]) -> None:
    """W - W_0 of LoRA is s B A with B = 0 at first: if W_0 is rebuilt exactly, all but four values are rounding."""
    lora, full = found["models"]
    assert (lora["label"], full["label"]) == ("lora r=4", "full")
    for layer in lora["layers"]:
        sigma = layer["change"]["singular_values"]
        assert len(sigma) == 32
        assert sigma[3] > 1e-4 * sigma[0]
        assert sigma[4] < 1e-4 * sigma[0]
        assert layer["change"]["effective_rank"] <= 4.01
    assert min(layer["change"]["effective_rank"] for layer in full["layers"]) > 5
    assert set(lora["types"]["change"]) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_the_files_are_there_and_are_not_overwritten(runs: Path, found: dict[str, Any]) -> None:
    assert json.loads((runs / "out" / JSON).read_text())["models"] == found["models"]
    assert (runs / "out" / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert "effective rank" in (runs / "out" / PAGE).read_text("utf-8")
    with pytest.raises(UserError, match="--overwrite"):
        spectrum(SpectrumOptions(checkpoint=(str(runs / "full"),), output=str(runs / "out")))


def test_a_reference_of_ones_own(runs: Path, tmp_path: Path) -> None:
    """A model against itself did not change at all."""
    result = spectrum(
        SpectrumOptions(
            checkpoint=(str(runs / "lora"),),
            reference=str(runs / "lora"),
            output=str(tmp_path),
            device="cpu",
            threads=1,
        )
    )
    (model,) = result["models"]
    assert all(torch.tensor(layer["change"]["singular_values"]).eq(0).all() for layer in model["layers"])


def test_a_classifier_has_a_body_too(runs: Path, tmp_path: Path) -> None:
    """What `switchlora finetune --save` leaves has no LM head, and none is looked at."""
    classifier = AutoModelForSequenceClassification.from_pretrained(runs / "full", num_labels=2)
    with torch.no_grad():
        classifier.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    classifier.save_pretrained(tmp_path / "classifier")
    chosen = {"reference": str(runs / "full"), "output": str(tmp_path / "out"), "device": "cpu", "threads": 1}
    (model,) = spectrum(SpectrumOptions(checkpoint=(str(tmp_path / "classifier"),), **chosen))["models"]
    norms = {layer["name"]: layer["change"]["frobenius_norm"] for layer in model["layers"]}
    assert [name for name, norm in norms.items() if norm] == ["model.layers.0.mlp.up_proj"]


def test_a_layer_that_did_not_change_has_no_part_in_the_mean_rank(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = AutoModelForCausalLM.from_pretrained(runs / "full")
    with torch.no_grad():
        changed.model.layers[0].mlp.up_proj.weight[:2, :2] += torch.eye(2)
    changed.save_pretrained(tmp_path / "changed")
    chosen = {"reference": str(runs / "full"), "output": str(tmp_path / "out"), "device": "cpu", "threads": 1}
    (model,) = spectrum(SpectrumOptions(checkpoint=(str(tmp_path / "changed"),), **chosen))["models"]
    up = model["types"]["change"]["up_proj"]
    assert (up["num_layers"], up["num_with_rank"]) == (2, 1)
    assert (up["effective_rank"], up["stable_rank"]) == (pytest.approx(2, abs=1e-3), pytest.approx(2, abs=1e-3))
    assert up["frobenius_norm"] == pytest.approx(2**0.5 / 2, abs=1e-3)
    down = model["types"]["change"]["down_proj"]
    assert down["num_with_rank"] == 0 and math.isnan(down["effective_rank"])
    assert "2.0 / 2.0" in capsys.readouterr().out
    assert "2, 1 unchanged" in (tmp_path / "out" / PAGE).read_text("utf-8")
    _, values = mean_spectrum(model, "change", "up_proj")
    assert values[:2] == pytest.approx([1, 1], abs=1e-3)
    assert (mean_spectrum(model, "change", "down_proj")[1] == 0).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint": None}, ["--checkpoint: must be given; name the output folder of a finished run"]),
        ({"checkpoint": ("nowhere/at/all",)}, ["nowhere/at/all", "no such folder"]),
        ({"reference": "nowhere/at/all"}, ["--reference", "no such folder"]),
        ({"reference": "OTHER"}, ["--reference", "another model"]),
        ({"output": "/proc/spectra"}, ["--output /proc/spectra", "nothing can be written in /proc"]),
    ],
)
def test_bad_input_is_one_line(runs: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    if changes.get("reference") == "OTHER":
        from switchlora.training.models import build_model

        build_model("tiny", seed=0).save_pretrained(tmp_path / "other")
        changes = {"reference": str(tmp_path / "other")}
    options = {"checkpoint": (str(runs / "full"),), "output": str(tmp_path / "out"), "device": "cpu", **changes}
    with pytest.raises(UserError) as caught:
        spectrum(SpectrumOptions(**options))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "out" / JSON).exists()
