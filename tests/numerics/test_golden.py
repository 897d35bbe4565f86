"""Parity with the official implementation: every recorded trajectory is replayed and compared quantity by quantity."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from switchlora.golden import replay_file
from switchlora.golden.__main__ import main

FOLDER = Path(__file__).parents[1] / "data" / "golden"
LINEAR = sorted(FOLDER.glob("golden_linear_*.npz"))
TRAJECTORY = {"loss", "grad/A", "grad/B", "grad/bias", "traj/W", "traj/A", "traj/B", "traj/bias", "opt/A/m", "opt/A/v",
              "opt/A/step", "opt/B/m", "opt/B/v", "opt/B/step", "final/W_merged", "final/eval_loss"}  # fmt: skip
SWITCHES = {"traj/cand_A", "traj/cand_B"} | {
    f"sw/{key}" for key in ("drawn", "num", "A_map", "B_map", "fixed_A", "fixed_B", "sel_A", "sel_B", "cursor_A",
                            "cursor_B", "fn_jump_A", "overlap_B", "interval (ratio)")}  # fmt: skip


def rewritten(source: Path, target: Path, **changes) -> Path:
    """A copy of a golden file with some arrays replaced (a function: of the old one; None: left out)."""
    with np.load(source) as archive:
        data = {key: archive[key] for key in archive.files}
    for key, change in changes.items():
        key = key.replace("__", "/")
        if change is None:
            del data[key]
        else:
            data[key] = change(data[key])
    np.savez(target, **data)
    return target


@pytest.mark.parametrize("path", LINEAR, ids=lambda path: path.stem)
def test_float64_trajectories_agree(path):
    """All recorded quantities: 1e-10 where the counters were float64 (measured 2e-15), 1e-5 where they were float32."""
    deviations = replay_file(path)
    assert deviations.within, str(deviations)
    exact = "exactbc" in path.stem
    assert set(deviations.largest) >= (TRAJECTORY | SWITCHES if exact else TRAJECTORY)
    assert {tolerance for _, tolerance in deviations.largest.values()} == ({1e-10} if exact else {1e-5})
    if exact:  # far tighter than asked: 60 steps of rounding in float64
        assert max(deviation for deviation, _ in deviations.largest.values()) < 1e-13


def test_the_llama_trajectory_agrees():
    deviations = replay_file(FOLDER / "golden_llama.npz")
    assert deviations.within, str(deviations)
    tolerances = {name: tolerance for name, (_, tolerance) in deviations.largest.items()}
    assert {name for name, tolerance in tolerances.items() if tolerance == 1e-5} == {
        "loss", "final_eval_loss", "loss_lora_only"
    }  # fmt: skip
    assert set(tolerances.values()) == {1e-5, 1e-4}
    for quantity in ("sw/drawn", "sw/num", "sw/A_map", "sw/B_map", "sw/fixed_A", "sw/cursor_B", "final_opt/step"):
        assert deviations.largest[quantity][0] == 0


def test_every_golden_file_is_here():
    assert len(LINEAR) == 4
    assert (FOLDER / "golden_llama.npz").exists()


def test_the_command_prints_each_quantity_and_exits_with_0():
    path = FOLDER / "golden_linear_a_continuous_exactbc.npz"
    done = subprocess.run(
        [sys.executable, "-m", "switchlora.golden", str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "within tolerance" in done.stdout
    assert all(quantity in done.stdout for quantity in TRAJECTORY | SWITCHES)


@pytest.mark.parametrize(
    "key", ["loss", "sw__fc1__u", "grad__fc2__B", "opt__fc1__A__m", "traj__fc2__cand_B", "sw__fc2__fixed_A", "X"]
)
def test_a_tampered_file_exits_with_1(tmp_path, capsys, key):
    def tamper(array):
        array = array.copy()
        array[7] = 0.999 * array[7] + 0.001 if "fixed" not in key else 1 - array[7]
        return array

    if key == "sw__fc1__u":  # another number is drawn, once

        def tamper(array):
            return np.where(np.arange(len(array)) == 3, 1 - array, array)

    path = rewritten(LINEAR[0], tmp_path / "tampered.npz", **{key: tamper})
    assert main([str(path)]) == 1
    assert "BEYOND TOLERANCE" in capsys.readouterr().out


def test_more_switches_than_the_file_has_room_for_is_a_deviation_and_no_crash(tmp_path):
    def narrow(array):
        return array[:, :0]

    path = rewritten(LINEAR[0], tmp_path / "narrow.npz", sw__fc1__A_map=narrow, sw__fc1__B_map=narrow)
    assert not replay_file(path).within


def test_the_worst_of_several_files_decides(tmp_path, capsys):
    bad = rewritten(LINEAR[0], tmp_path / "bad.npz", loss=lambda loss: loss + 1e-9)
    assert main([str(bad), str(LINEAR[0])]) == 1
    output = capsys.readouterr().out
    assert output.index("BEYOND TOLERANCE") < output.index("within tolerance")


@pytest.mark.parametrize(
    "kind", ["missing", "a folder", "text", "empty", "cut off", "one array", "no array", "no meta"]
)
def test_bad_input_is_one_line_and_exits_with_2(tmp_path, capsys, kind):
    path = tmp_path / "file.npz"
    if kind == "a folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("hello")
    elif kind == "empty":
        path.touch()
    elif kind == "cut off":
        path.write_bytes(LINEAR[0].read_bytes()[:50_000])
    elif kind == "one array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "no array":
        rewritten(LINEAR[0], path, init__fc1__A=None)
    elif kind == "no meta":
        rewritten(LINEAR[0], path, meta_json=None)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("switchlora.golden: error: ")
    assert error.count("\n") == 1
    assert str(path) in error


def test_settings_that_we_refuse_are_named(tmp_path, capsys):
    def change(meta):
        return np.array(json.dumps({**json.loads(str(meta)), "freeze_steps": 6}))

    path = rewritten(LINEAR[0], tmp_path / "file.npz", meta_json=change)
    assert main([str(path)]) == 2
    assert "interval=10" in capsys.readouterr().err
