"""`switchlora finetune` on a run of a second or two: what it learns, what it leaves, and what it refuses."""

import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GraniteConfig

from switchlora.compare.command import compare
from switchlora.compare.options import CompareOptions
from switchlora.errors import NonFiniteError, UserError
from switchlora.finetuning.command import finetune
from switchlora.finetuning.glue import TASKS
from switchlora.finetuning.models import load_classifier
from switchlora.finetuning.options import FinetuneOptions
from tests.integration.trained.finetuning import write_scores, write_task

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("method", ["full", "lora", "switchlora", "subset"])
def test_every_method_learns_it_and_leaves_its_figures(options: Any, tmp_path: Path, method: str) -> None:
    result = finetune(options(method=method, epsilon=0.05, interval=10.0))
    written = json.loads((tmp_path / "out" / "finetune.json").read_text())
    assert written["metrics"] == result["metrics"]
    dev = result["metrics"]["dev"]["accuracy"]
    each = [one["metrics"]["dev"]["accuracy"] for one in result["seeds"]]
    assert dev["mean"] == pytest.approx(sum(each) / 2)
    assert dev["mean"] >= 90
    assert [one["seed"] for one in result["seeds"]] == [0, 1]
    assert result["num_rows"] == {"train": 96, "dev": 40}
    trains_all = method in ("full", "subset")
    assert (result["seeds"][0]["trainable_parameters"] > 20_000) == trains_all


def test_scores_are_learned_too(options: Any, tmp_path: Path) -> None:
    result = finetune(options(task="stsb", data=str(write_scores(tmp_path / "stsb")), seeds=1, epochs=8))
    dev = result["metrics"]["dev"]
    assert dev.keys() == {"spearman", "pearson"}
    assert dev["spearman"]["mean"] > 70 and dev["pearson"]["mean"] > 70
    assert result["seeds"][0]["train_losses"][-1] < 2.0 < 4.0 < result["seeds"][0]["train_losses"][0]  # squares


def test_the_rate_is_chosen_on_held_out_rows_of_train_whatever_dev_says(options: Any, tmp_path: Path) -> None:
    rates = (1e-7, 3e-3)
    right = finetune(options(lr=rates, seeds=1))
    flipped = write_task(tmp_path / "flipped", flipped_dev=True)
    wrong = finetune(options(lr=rates, seeds=1, data=str(flipped), output=str(tmp_path / "other")))
    assert (right["lr"], wrong["lr"]) == (3e-3, 3e-3)
    assert [one["metrics"] for one in right["tuning"]] == [one["metrics"] for one in wrong["tuning"]]
    assert right["metrics"]["dev"]["accuracy"]["mean"] > 80 > 20 > wrong["metrics"]["dev"]["accuracy"]["mean"]
    assert right["lr_at_the_edge"]


def test_a_delta_and_its_checkpoint_are_the_model(options: Any, trained: Path, tmp_path: Path) -> None:
    result = finetune(options(method="subset", epsilon=0.01, seeds=1, save=True))
    folder = tmp_path / "out" / "seed-0"
    assert result["seeds"][0]["delta_bytes"] == (folder / "delta.safetensors").stat().st_size
    delta = str(folder / "delta.safetensors")
    finetune(FinetuneOptions(checkpoint=str(trained / "run"), apply_delta=delta, output=str(tmp_path / "applied")))
    ours, saved = (load_file(path / "model.safetensors") for path in (tmp_path / "applied", folder))
    assert ours.keys() == saved.keys()
    written = ("model.safetensors", "delta.safetensors", "config.json")
    assert len({(folder / name).stat().st_mode for name in written}) == 1
    assert all(torch.equal(ours[name], saved[name]) for name in ours)
    seed = load_file(trained / "run" / "model.safetensors")
    body = [name for name in ours if name in seed]
    assert 0 < sum(int((ours[name] != seed[name]).sum()) for name in body) <= 0.01 * sum(seed[n].numel() for n in body)
    other = shutil.copytree(trained / "run", tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    torch.save(weights, other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    with pytest.raises(UserError, match="was made from other weights"):
        finetune(FinetuneOptions(checkpoint=str(other), apply_delta=delta, output=str(tmp_path / "no")))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"checkpoint": None}, ["--checkpoint", "must be given"]),
        ({"task": None}, ["--task", "must be given", "cola"]),
        ({"method": "lora", "r": 32, "lr": (1e-3,)}, ["--r 32", "use r < 32"]),
        ({"method": "subset", "epsilon": 1e-7}, ["--epsilon 1e-07", "less than one entry", "the smallest is"]),
        ({"method": "subset", "silo": "tensor", "epsilon": 1e-2}, ["less than one entry of model.", "which has 32"]),
        ({"seq_len": 65}, ["--seq-len 65", "64 positions"]),
        ({"data": "no/such"}, ["--data no/such", "no such folder"]),
        ({"data": "no/such", "output": "/proc/x"}, ["--output /proc/x", "nothing can be written in /proc"]),
        ({"apply_delta": "no/such", "output": "/proc/x"}, ["--output /proc/x", "nothing can be written in /proc"]),
    ],
)
def test_mistakes_leave_nothing_behind(options: Any, tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        finetune(options(**changes))
    assert "\n" not in str(refused.value)
    assert all(part in str(refused.value) for part in parts), str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_tokenizer_and_a_rate_that_blows_up(options: Any, trained: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(trained / "run", tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match="has no tokenizer"):
        finetune(options(checkpoint=str(bare)))
    with pytest.raises(NonFiniteError, match="lower --lr"):
        finetune(options(lr=(1e3,), clip=0.0, weight_decay=10.0, epochs=8))


def test_deltas_of_a_family_without_a_classifier(
    options: Any, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--apply-delta has nothing to save their model as; what the page has for Python does."""
    config = GraniteConfig(
        vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    seed = str(tmp_path / "granite")
    AutoModelForCausalLM.from_config(config).save_pretrained(seed)
    AutoTokenizer.from_pretrained(trained / "run").save_pretrained(seed)
    finetune(options(checkpoint=seed, method="subset", epochs=1, seeds=1))
    said = capsys.readouterr().out
    assert "note: transformers has no classifier for granite, so --apply-delta will have nothing to save" in said
    name = str(tmp_path / "out" / "seed-0" / "delta.safetensors")
    with pytest.raises(UserError, match="apply_delta_ of switchlora"):
        finetune(FinetuneOptions(checkpoint=seed, apply_delta=name, output=str(tmp_path / "applied")))
    page = (ROOT / "docs" / "finetune.md").read_text("utf-8")
    code = textwrap.dedent(page.partition("```python\n")[2].partition("```")[0])
    known: dict[str, Any] = {}
    exec(code.replace("runs/finetune-rte-subset/seed-0/delta.safetensors", name).replace("SEED", seed), known)
    before = load_classifier(seed, TASKS["sst2"], known["load_tokenizer"](seed), 0).state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in known["model"].state_dict().items())


def test_two_results_side_by_side(options: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, method in (("one", "full"), ("two", "lora")):
        finetune(options(method=method, epochs=1, seeds=3, output=str(tmp_path / name)))
    names = (str(tmp_path / "one"), str(tmp_path / "two" / "finetune.json"))
    found = compare(CompareOptions(finetuned=names, output=str(tmp_path / "both")))["finetuned"]
    one, two = found["results"]
    assert one["differences"] is None
    difference = two["differences"]["dev"]["accuracy"]
    means = [each["metrics"]["dev"]["accuracy"]["mean"] for each in (one, two)]
    assert difference["mean"] == pytest.approx(means[1] - means[0])
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert json.loads((tmp_path / "both" / "finetuned.json").read_text()) == found
    assert "dev accuracy" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds no finetune\.json"):
        compare(CompareOptions(finetuned=(names[0], str(tmp_path)), output=str(tmp_path / "both")))
    changed = json.loads((tmp_path / "two" / "finetune.json").read_text()) | {"rows": "others"}
    (tmp_path / "two" / "finetune.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"differs from .* in the rows"):
        compare(CompareOptions(finetuned=names, output=str(tmp_path / "both")))
    with pytest.raises(UserError, match="give two or more"):
        CompareOptions(finetuned=names[:1])


def test_what_differs_beside_the_model_is_said(
    options: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, epochs in (("one", 1), ("two", 2)):
        finetune(options(epochs=epochs, seeds=name.count("w") + 1, output=str(tmp_path / name)))
    names = (str(tmp_path / "one"), str(tmp_path / "two"))
    found = compare(CompareOptions(finetuned=names, output=str(tmp_path / "both")))["finetuned"]
    assert list(found["unlike"].values()) == [{"epochs": [1, 2]}]
    shown = capsys.readouterr().out
    assert "was fine-tuned with epochs 2 instead of 1" in shown
    assert "n = 1 " in shown and "n = 2 " in shown
    whole = json.loads((tmp_path / "two" / "finetune.json").read_text())
    for damage in ({"seeds": 5}, {"metrics": {}}, {"config": None}):
        (tmp_path / "two" / "finetune.json").write_text(json.dumps(whole | damage))
        with pytest.raises(UserError, match=r"is no result of switchlora finetune"):
            compare(CompareOptions(finetuned=names, output=str(tmp_path / "both")))


def test_a_tokenizer_of_another_model_or_without_an_end(options: Any, trained: Path, tmp_path: Path) -> None:
    tokenizer, model = (one.from_pretrained(trained / "run") for one in (AutoTokenizer, AutoModelForCausalLM))
    small = str(tmp_path / "small")
    tokenizer.save_pretrained(small)
    model.resize_token_embeddings(250).train()
    model.save_pretrained(small)
    with pytest.raises(UserError, match=r"its tokenizer gives token \d+, and the model has 250"):
        finetune(options(checkpoint=small))
    tokenizer.eos_token = None
    tokenizer.save_pretrained(small)
    with pytest.raises(UserError, match=r"its tokenizer has no end-of-text"):
        finetune(options(checkpoint=small))
    assert not (tmp_path / "out").exists()
