"""`switchlora compare`, end to end: a search, runs side by side, interruptions, and what is refused."""

import json
import math
import signal
from pathlib import Path

import pytest

from tests.integration.compare.conftest import interrupt_when, results_in

FIGURES = ("validation_loss", "validation_perplexity", "bits_per_byte", "tokens_per_second", "peak_memory_bytes",
           "step_seconds", "training_seconds")  # fmt: skip


def test_a_comparison_with_a_search(config, compare, tmp_path):
    """Both rates of either method are searched for with a seed that counts for nothing else, and the winner runs."""
    done = compare(config(tune=True, tune_seed=7, tune_steps=3, tune_runs=5, seeds=[0]))
    assert done.returncode == 0, done.stderr
    assert "budget: 12 runs left, about" in done.stdout
    results = results_in(tmp_path / "out")
    for label in ("full", "switchlora"):
        searched = [one for one in results.values() if one["label"] == label and one["seed"] == 7]
        (final,) = [one for one in results.values() if one["label"] == label and one["seed"] == 0]
        best = min(searched, key=lambda one: one["validation_loss"])
        assert len(searched) == 5
        assert (final["lr"], final["other_lr"]) == (best["lr"], best["other_lr"])
        assert (final["steps"], best["steps"]) == (6, 3)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Searches for learning rates" in page
    again = compare(config(tune=True, tune_seed=7, tune_steps=3, tune_runs=5, seeds=[0]))
    assert "budget: 0 runs left" in again.stdout
    assert results_in(tmp_path / "out") == results


def test_a_record_holds_what_was_measured_and_what_was_run(finished):
    results = results_in(finished)
    assert len(results) == 2
    for one in results.values():
        assert all(one[name] > 0 for name in FIGURES)
        assert one["curve"]["tokens"] == [256, 512, 768]
        assert len(one["curve"]["train_loss"]) == 6
        assert one["bytes_by_kind"]["gradient_bytes"] > 0
        assert one["bytes_by_kind"]["optimizer_device_bytes"] > 0
        assert {"torch", "transformers"} <= one["versions"].keys()
        assert "pretrain" in one["command"] and "--steps 6" in one["command"]
        assert one["config"]["seed"] == 0
    (full,), (ours,) = ([one for one in results.values() if one["method"] == name] for name in ("full", "switchlora"))
    assert ours["bytes_by_kind"]["gradient_bytes"] < full["bytes_by_kind"]["gradient_bytes"]
    assert full["data_fingerprint"] == ours["data_fingerprint"]


def test_runs_of_two_processes_and_their_traffic(config, compare, tmp_path):
    """Under torchrun, whose own exit code does not tell a run that diverged from one that failed."""
    methods = {"full": {}, "switchlora": {}, "boom": {"method": "full", "lr": 1e18, "other_lr": 1e18}}
    done = compare(config(processes=2, jobs=1, seeds=[0], methods=methods))
    assert done.returncode == 0, done.stderr
    results = {one["label"]: one for one in results_in(tmp_path / "out").values()}
    assert results["boom"]["diverged"]
    assert "step" in results["boom"]["error"] and "rank" in results["boom"]["error"]
    for label in ("full", "switchlora"):
        one = results[label]
        assert (one["world_size"], one["parallel"]) == (2, "ddp")
        assert abs(one["traffic_bytes"]["all_reduce"] - 4 * one["trainable_parameters"]) < 100
    page = (tmp_path / "out" / "report.html").read_text()
    share = results["switchlora"]["traffic_bytes"]["all_reduce"] / results["full"]["traffic_bytes"]["all_reduce"]
    assert "<h2>Traffic</h2>" in page and f"{share:.3f}" in page


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_an_interrupted_comparison_goes_on(config, start, compare, tmp_path, how):
    """Finished runs are kept, broken ones go on, and the losses are those of an undisturbed comparison."""
    undisturbed = config(output=str(tmp_path / "whole"), pretrain={"steps": 30}, seeds=[0])
    assert compare(undisturbed).returncode == 0
    disturbed = config(output=str(tmp_path / "out"), pretrain={"steps": 30}, seeds=[0])
    process = start(disturbed)
    logs = tmp_path / "out" / "runs"
    interrupt_when(process, lambda: any("step" in f.read_text() for f in logs.glob("*/metrics.jsonl")), how)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == {signal.SIGTERM: 75, signal.SIGKILL: -9}[how], errors
    done = compare(disturbed)  # which may have to wait for runs that the killed one left
    assert done.returncode == 0, done.stderr
    losses = [{id: one["validation_loss"] for id, one in results_in(tmp_path / x).items()} for x in ("whole", "out")]
    assert losses[0] == losses[1]


def test_it_stops_after_its_hours_and_goes_on(config, compare, tmp_path):
    path = config(pretrain={"steps": 2000, "eval_every": 0, "save_every": 0}, seeds=[0])
    assert compare(path, "--hours", "0.003").returncode == 0
    assert len(results_in(tmp_path / "out")) < 2
    done = compare(path)
    assert done.returncode == 0
    assert len(results_in(tmp_path / "out")) == 2


def test_a_run_that_diverges_is_kept_and_marked(config, compare, tmp_path):
    methods = {"full": {"lr": 0.002}, "wild": {"method": "full", "lr": 1e15, "other_lr": 1e15}}
    done = compare(config(methods=methods, seeds=[0], pretrain={"warmup": 0}))
    assert done.returncode == 0, done.stderr
    (lost,) = [one for one in results_in(tmp_path / "out").values() if one["label"] == "wild"]
    assert lost["diverged"] and lost["validation_loss"] is None
    assert "--method" in lost["command"] and "--config" not in lost["command"]  # of a folder that need not be kept
    assert {"torch", "transformers"} <= lost["versions"].keys()
    assert "step" in lost["error"]
    assert ">diverged</td>" in (tmp_path / "out" / "report.html").read_text()
    assert compare(config(methods=methods, seeds=[0], pretrain={"warmup": 0})).returncode == 0


def test_results_of_another_configuration_are_refused_with_what_differs(config, compare, finished):
    before = results_in(finished)
    done = compare(config(seeds=[0], pretrain={"batch_size": 8}))
    assert done.returncode == 2
    assert "batch_size 4 there, 8 here" in done.stderr
    assert results_in(finished) == before


def test_more_seeds_and_methods_may_be_added(config, compare, finished):
    before = results_in(finished)
    assert compare(config(seeds=[0, 1], methods={"full": {"lr": 0.002, "other_lr": 0.01}, "lora": {}})).returncode == 0
    assert before.items() <= results_in(finished).items()
    assert len(results_in(finished)) == 2 + 1 + 2


def test_a_damaged_result_is_named_and_gathered_again(config, compare, finished):
    path = next((finished / "results").glob("full*.json"))
    content = path.read_text()
    path.write_text(content[: len(content) // 2])
    done = compare(config(seeds=[0]))
    assert done.returncode == 2
    assert path.name in done.stderr and "remove it" in done.stderr
    path.unlink()
    assert compare(config(seeds=[0])).returncode == 0
    assert json.loads(path.read_text()) == json.loads(content)


FAILS = """
from switchlora.methods.lora import LoraMethod

class Fails(LoraMethod):
    def totals(self, optimizer):
        raise ArithmeticError("lost count")

METHOD = Fails()
"""


def test_a_run_that_fails_is_named_with_its_reason(config, compare, tmp_path):
    (tmp_path / "fails.py").write_text(FAILS)
    done = compare(config(seeds=[0], methods={"full": {}, "own": {"method": str(tmp_path / "fails.py")}}))
    assert done.returncode == 2
    assert "lost count" in done.stderr and ".log" in done.stderr
    assert "Traceback" not in done.stderr
    assert [one["label"] for one in results_in(tmp_path / "out").values()] == ["full"]  # goes on with the others


def test_text_that_is_too_short_is_found_before_any_run(config, compare, tmp_path):
    (tmp_path / "short.txt").write_text("Too short.")
    done = compare(config(pretrain={"data": [str(tmp_path / "short.txt")]}))
    assert done.returncode == 2
    assert "short.txt" in done.stderr and ".log" not in done.stderr
    assert not (tmp_path / "out" / "runs").exists()


def test_text_that_has_changed_is_found_before_any_run(config, compare, finished, ground, tmp_path):
    """The same path, so the same configuration."""
    text = ground / "text.txt"
    old = text.read_bytes()
    try:
        text.write_bytes(old[: len(old) // 2])
        done = compare(config(seeds=[0, 1]))
    finally:
        text.write_bytes(old)
    assert done.returncode == 2
    assert "--data: has changed since the results in" in done.stderr
    assert len(results_in(finished)) == 2


def test_a_run_on_text_that_has_changed_meanwhile_is_not_kept(config, finished, monkeypatch):
    from switchlora.compare import command
    from switchlora.compare.processes import Running

    records = results_in(finished)
    kept = next(iter(records))
    one = type("Over", (Running,), {"code": 0, "error": lambda self: ""})
    plan = command.make_plan(command.CompareOptions.from_yaml(config(seeds=[0, 1])))
    run = next(run for run in plan.ready({id: 4.0 for id in records}) if run.seed == 1)
    monkeypatch.setattr(command.results, "gather", lambda *_: {**records[kept], "data_fingerprint": "another"})
    error = command._over(one(run, finished, finished / "log", 0, 0, None), finished, dict(records), print_nothing)
    assert "--data has changed since the other runs" in str(error)
    assert results_in(finished) == records


def print_nothing(line: str, *, always: bool = False) -> None:
    """In place of the progress view."""


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"pretrain": {"data": ["absent.txt"]}}, ["absent.txt", "no such file"]),
        ({"methods": {"full": {}, "lora": {"target_modules": ["nothing"]}}}, ["--methods 'lora r=", "nothing"]),
        ({"output": "/proc/here"}, ["--output /proc/here", "nothing can be written"]),
        ({"processes": 3}, ["--batch-size 4", "multiple of the 3 processes"]),
    ],
)
def test_what_every_run_would_find_is_found_first(config, compare, tmp_path, changes, parts):
    done = compare(config(**changes), "--dry-run")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    for part in parts:
        assert part in done.stderr
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_nothing(config, compare, tmp_path):
    done = compare(config(jobs=64, pretrain={"warmup": 3}), "--dry-run")
    assert done.returncode == 0
    assert "budget: 4 runs left" in done.stdout
    assert "--jobs 64: more runs than CPU cores" in done.stdout
    assert not (tmp_path / "out").exists()


def test_batches_are_identical_for_every_method(config, compare, tmp_path):
    """At learning rates of 0 every method has the loss of the first weights on the batches of the seed."""
    tiny = {"lr": 1e-30, "other_lr": 1e-30}
    methods = {"full": tiny, "muon": tiny, "switchlora": tiny, "relora": tiny}
    assert compare(config(methods=methods, seeds=[0])).returncode == 0
    losses = [one["curve"]["train_loss"] for one in results_in(tmp_path / "out").values()]
    assert len(losses) == 4
    for other in losses[1:]:
        assert all(math.isclose(a, b, abs_tol=2e-5) for a, b in zip(losses[0], other, strict=True))


def test_a_missing_extra_is_told_with_the_command(monkeypatch):
    import importlib.util

    from switchlora.errors import UserError
    from switchlora.report.compare_page import require_packages

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '\.\[compare\]'"):
        require_packages()


def test_the_folder_is_held_against_a_second_comparison(config, start, compare, tmp_path):
    path = config(pretrain={"steps": 2000})
    process = start(path)
    try:
        interrupt_when(process, lambda: Path(tmp_path / "out" / "runs").exists(), signal.SIGCONT)
        done = compare(path)
        assert done.returncode == 2
        assert "another" in done.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
