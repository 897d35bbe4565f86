"""A broken golden file is one line and exit 2: exit 1 is kept for honest files whose numbers differ."""

import json
from pathlib import Path

import numpy as np
import pytest

from switchlora.golden.__main__ import main
from tests.numerics.official_rules import Recipe, record

LLAMA = Path(__file__).parents[1] / "data" / "golden" / "golden_llama.npz"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("golden") / "good.npz"
    record(Recipe(r=4, interval=10, N=5, dims=(12, 8, 10), order="random", steps=20), path)
    with np.load(path) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def llama():
    with np.load(LLAMA) as archive:
        return dict(archive)


def changed(data, changes):
    """Arrays replaced (None: left out); keys without a slash that are no array are settings of meta_json."""
    meta, arrays = json.loads(str(data["meta_json"])), dict(data)
    for key, value in changes.items():
        if key in arrays or "/" in key:
            arrays[key] = value(arrays[key]) if callable(value) else value
        else:
            meta[key] = value
    if "meta_json" not in changes:
        kept = {key: value for key, value in meta.items() if value != "left out"}
        arrays["meta_json"] = np.array(json.dumps(kept))
    return {key: value for key, value in arrays.items() if value is not None}


def assert_one_line(tmp_path, capsys, data, word):
    path = tmp_path / "bad.npz"
    np.savez(path, **data)
    assert main([str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"switchlora.golden: error: {path}: ")
    assert captured.err.count("\n") == 1
    assert word in captured.err


SETTINGS = [
    ("rank", 0), ("rank", "x"), ("rank", 16), ("rank", 2.5), ("lora_alpha", 0), ("dims", [12, 8]), ("dims", [12, 8, 0]),
    ("dims", [12, 9, 10]), ("dims", "x"), ("layers", ["fc1"]), ("layers", ["fc1", "fc1"]), ("layers", ["a.b", "fc2"]),
    ("layers", 3), ("dtype", "complexfloat"), ("dtype", None), ("dtype", []), ("step_counter_dtype", "x"),
    ("steps", "x"), ("steps", 0), ("steps", -1), ("steps", 10**12), ("steps", True), ("freeze_steps", 6),
    ("freeze_steps", -1), ("freeze_steps", "x"), ("base_interval", 0), ("lr", "x"), ("lr", -1), ("lr", float("nan")),
    ("eps", None), ("betas", [0.9]), ("betas", [0.9, 2]), ("betas", "ab"), ("weight_decay", -1), ("clip_grad_norm", 0),
    ("clip_grad_norm", "x"), ("fixed_interval", "x"), ("continuous", 1), ("switching", None),
    ("descend_type", "linear"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), SETTINGS)
def test_a_setting_that_cannot_be(good, tmp_path, capsys, key, value):
    assert_one_line(tmp_path, capsys, changed(good, {key: value}), "")


@pytest.mark.parametrize("key", sorted(Recipe(r=2, interval=4, N=1, dims=(4, 4)).meta().keys() - {"descend_type"}))
def test_a_setting_that_is_missing(good, tmp_path, capsys, key):
    changes = {key: "left out"}
    if key == "expect_switch_descend_step":  # needed with decay only
        changes["fixed_interval"] = False
    assert_one_line(tmp_path, capsys, changed(good, changes), f"{key!r} of meta_json is missing")


@pytest.mark.parametrize("text", ["[1]", "not JSON", "", "3", "null", "[" * 100_000])
def test_meta_that_is_no_object(good, tmp_path, capsys, text):
    assert_one_line(tmp_path, capsys, changed(good, {"meta_json": np.array(text)}), "meta_json")


ARRAYS = ["X", "Y", "loss", "init/fc1/A", "init/fc2/W", "init/fc1/W_orig", "init/fc1/bias", "init/fc2/cand_B",
          "init/fc1/sel_A", "init/fc1/cursor_B", "sw/fc1/u", "sw/fc2/A_map", "traj/fc1/W", "traj/fc2/cand_A",
          "opt/fc1/B/step", "opt/fc2/bias/m", "final/fc1/W_merged", "final/eval_loss"]  # fmt: skip


@pytest.mark.parametrize("key", ARRAYS)
@pytest.mark.parametrize("kind", ["missing", "short", "one axis more", "text"])
def test_an_array_that_is_not_as_the_format_has_it(good, tmp_path, capsys, key, kind):
    def change(array):
        if kind == "text":
            return np.full(array.shape, "x")
        return array[:-1] if kind == "short" and array.ndim else array[..., None]

    assert_one_line(tmp_path, capsys, changed(good, {key: None if kind == "missing" else change}), key)


@pytest.mark.parametrize("key", ["grad/fc1/A", "sw/fc1/drawn", "sw/fc2/fixed_B", "sw/fc1/fn_jump_A"])
def test_what_a_file_need_not_have_must_have_the_right_shape(good, tmp_path, capsys, key):
    assert_one_line(tmp_path, capsys, changed(good, {key: lambda array: array[:-1]}), key)
    np.savez(tmp_path / "less.npz", **changed(good, {key: None}))
    assert main([str(tmp_path / "less.npz")]) == 0


@pytest.mark.parametrize("key", ["init/fc1/sel_A", "init/fc2/cursor_B"])
@pytest.mark.parametrize("value", [-1, 99])
def test_an_index_out_of_range(good, tmp_path, capsys, key, value):
    assert_one_line(tmp_path, capsys, changed(good, {key: lambda array: np.full_like(array, value)}), key)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("sw/fc1/u", np.zeros_like),  # one switch at each step, and the recorded candidates do not suffice
        ("sw/fc1/u", lambda array: np.full_like(array, np.nan)),
        ("sw/fc1/A_map", lambda array: array[:, :0]),
        ("sw/fc1/B_map", lambda array: np.full_like(array, 1000)),
        ("sw/fc2/interval", np.zeros_like),
        ("traj/fc1/A", lambda array: np.full_like(array, np.nan)),
        ("init/fc1/A", lambda array: np.full_like(array, np.inf)),
    ],
)
@pytest.mark.filterwarnings("error")
def test_numbers_that_differ_are_deviations(good, tmp_path, capsys, key, change):
    np.savez(tmp_path / "other.npz", **changed(good, {key: change}))
    assert main([str(tmp_path / "other.npz")]) == 1
    captured = capsys.readouterr()
    assert "BEYOND TOLERANCE" in captured.out
    assert captured.err == ""


NAME = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", 3), ("config", {"hidden_size": "x"}), ("config", {"hidden_size": 30, "num_attention_heads": 7}),
        ("lora_layers", ["nowhere"]), ("lora_layers", ["model.norm"]), ("snapshots", 3), ("steps", 41), ("rank", 7),
        ("tokens", lambda tokens: tokens + 128), ("tokens", lambda tokens: tokens[:5]), ("grad_norm", None),
        (f"orig/{NAME}.weight", None), (f"orig/{NAME}.weight", np.transpose), (f"state0/{NAME}.lora_A", None),
        (f"state20/{NAME}.candidates_B", np.transpose), (f"state20/{NAME}.nothing", np.zeros(3)),
        (f"sw/{NAME}/u", lambda u: u[:3]), (f"final_opt/{NAME}.lora_A/step", np.transpose),
        (f"final_merged/{NAME}", None), (f"init_sel/{NAME}/sel_A", lambda sel: sel + 99),
        ("final_eval_loss", np.zeros(41)), ("loss_lora_only", np.zeros(41)),
    ],
)  # fmt: skip
def test_llama_files(llama, tmp_path, capsys, key, value):
    assert_one_line(tmp_path, capsys, changed(llama, {key: value}), key.partition("/")[0])
