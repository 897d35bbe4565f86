"""Results of fine-tuning side by side: what is tested, against values by hand, and what is said beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from switchlora.compare.command import compare
from switchlora.compare.finetuned import COVERS, RECIPE, RECIPE_OF, side_by_side, table
from switchlora.compare.options import CompareOptions
from switchlora.errors import UserError
from switchlora.finetuning.options import FinetuneOptions

SHARED = {
    "epochs": 3, "batch_size": 16, "seq_len": 128, "warmup": 0.06, "weight_decay": 0.0, "clip": 1.0, "head_lr": None,
    "held_out": 0.1, "r": 8, "lora_alpha": 1.0, "interval": 40.0, "epsilon": 1e-3, "silo": "model", "lr": [1e-3],
}  # fmt: skip


def write(folder: Path, values: list[float], method: str = "full", *, edge: bool = False, **config: Any) -> str:
    """finetune.json with these accuracies of seeds 0, 1, ..."""
    folder.mkdir()
    metrics = {"dev": {"accuracy": {"mean": sum(values) / len(values), "sd": 1.0, "n": len(values)}}}
    seeds = [{"seed": seed, "metrics": {"dev": {"accuracy": value}}} for seed, value in enumerate(values)]
    result = {
        "task": "rte", "rows": "abc", "checkpoint": folder.name, "method": method, "lr": 1e-3, "lr_at_the_edge": edge,
        "metrics": metrics, "seeds": seeds, "config": {**SHARED, **config},
    }  # fmt: skip
    (folder / "finetune.json").write_text(json.dumps(result))
    return str(folder)


def difference(found: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = found["results"][1]["differences"]["dev"]["accuracy"]
    return made


def test_the_test_is_the_paired_one(tmp_path: Path) -> None:
    """Seeds scatter by tens, their differences by one: 1, 2, 3 of mean 2 and standard error 1/sqrt(3)."""
    names = [write(tmp_path / "a", [50.0, 70.0, 90.0]), write(tmp_path / "b", [51.0, 72.0, 93.0])]
    found = difference(side_by_side(names))
    by_hand = 2 * stats.t.sf(2 * 3**0.5, 2)
    assert found["p"] == pytest.approx(by_hand)
    assert stats.ttest_ind([51.0, 72.0, 93.0], [50.0, 70.0, 90.0]).pvalue > 10 * by_hand


@pytest.mark.parametrize("by", [12.68, 0.1, 0.0])
def test_of_equal_differences_nothing_can_be_tested(tmp_path: Path, by: float) -> None:
    """0.1 is not the same difference in floating point: the guard is for that, too."""
    values = [50.1, 60.7, 70.3, 1.9]
    found = side_by_side([write(tmp_path / "a", values), write(tmp_path / "b", [value + by for value in values])])
    made = difference(found)
    assert made["mean"] == pytest.approx(by)
    assert (made["low"], made["high"], made["p"]) == (None, None, None)
    shown = table(found)
    assert f"{by:+.2f} over 4 seeds; the same with every seed, so no test is possible" in shown
    assert "p =" not in shown


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("seeds", 0, "metrics", "dev", "accuracy"), None),
        (("seeds", 1, "metrics", "dev"), {}),
        (("seeds",), []),
        (("metrics", "dev"), {}),
        (("metrics",), {}),
        (("metrics", "dev", "accuracy", "sd"), "a"),
        (("task",), "none"),
        (("lr",), None),
        (("seeds", 1, "metrics", "dev", "accuracy"), float("nan")),
        (("metrics", "dev", "accuracy", "n"), float("inf")),
        (("metrics", "dev", "accuracy", "mean"), "50"),
        (("lr",), "0.001"),
        (("config", "lr"), 0.001),
        (("config", "lr"), ["0.001"]),
        (("method",), ["lora"]),
        (("lr_at_the_edge",), "yes"),
        (("seeds", 0, "seed"), "0"),
    ],
    ids=str,
)
def test_results_that_are_not_whole(tmp_path: Path, keys: tuple[Any, ...], value: Any) -> None:
    whole, damaged = (write(tmp_path / name, [50.0, 70.0]) for name in ("a", "b"))
    path = Path(damaged) / "finetune.json"
    place = result = json.loads(path.read_text())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(result))
    for names in ([whole, damaged], [damaged, whole]):
        with pytest.raises(UserError, match=rf"--finetuned {damaged}: is no result of switchlora finetune"):
            side_by_side(names)


def test_a_place_to_write_is_looked_for_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for output, words in (("/proc/x", "nothing can be written in /proc"), (str(tmp_path / "file"), "is a file")):
        with pytest.raises(UserError, match=f"--output {output}: {words}"):
            compare(CompareOptions(finetuned=("no/such", "nor/this"), output=output))


def test_no_option_that_decides_a_result_is_left_out() -> None:
    compared = {*RECIPE, *(name for names in RECIPE_OF.values() for name in names)}
    decides_nothing = {"output", "overwrite", "save", "device", "threads", "apply_delta"}
    shown_or_refused = {"checkpoint", "task", "data", "method", "seeds"}
    assert compared | decides_nothing | shown_or_refused == FinetuneOptions.specs().keys()


def test_the_table_says_how_each_was_made_and_what_its_spread_is_of(tmp_path: Path) -> None:
    names = [
        write(tmp_path / "a", [50.0, 70.0], "lora", lr=[1e-3, 1e-2], edge=True),
        write(tmp_path / "b", [51.0, 72.0], "switchlora", r=4, lora_alpha=2.0, interval=20.0, held_out=0.2),
        write(tmp_path / "c", [51.0, 72.0], "subset", epsilon=1e-4, silo="tensor", lr=[1e-3, 3e-3], held_out=0.2),
    ]
    found = side_by_side(names)
    shown = table(found)
    assert "lora of a: lora, lr 0.001, the best of 0.001 0.01 (at the edge), r 8, lora_alpha 1\n" in shown
    assert "switchlora of b: switchlora, lr 0.001, r 4, lora_alpha 2, interval 20\n" in shown
    assert "subset of c: subset, lr 0.001, the best of 0.001 0.003, epsilon 0.0001, silo tensor\n" in shown
    assert found["unlike"] == {
        "switchlora of b": {"lr": [[1e-3, 1e-2], [1e-3]], "r": [8, 4], "lora_alpha": [1.0, 2.0]},
        "subset of c": {"lr": [[1e-3, 1e-2], [1e-3, 3e-3]], "held_out": [0.1, 0.2]},
    }
    assert "note: switchlora of b was fine-tuned with the rates tried 0.001 instead of 0.001 0.01, r 4" in shown
    assert shown.endswith(COVERS)
