"""`switchlora evaluate` on a run of a second or two: text, and lm-eval on a task file of the test's own."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from switchlora.errors import UserError
from switchlora.evaluation import tasks as tasks_module
from switchlora.evaluation.command import JSON, evaluate
from switchlora.evaluation.options import EvaluateOptions

TEXTS = ["The parser reads arguments.\nAnd it says so: naïve, ½.\n", "def f():\n    return 1\n" * 20]


@pytest.fixture(autouse=True)
def _offline(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWITCHLORA_CACHE", str(trained / "cache"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def options(trained: Path, tmp_path: Path) -> Any:
    """Options of a small evaluation: `options(name=value, ...)`."""

    def make(**values: Any) -> EvaluateOptions:
        common = {"checkpoint": (str(trained / "run"),), "device": "cpu", "threads": 1, "output": str(tmp_path / "out")}
        return EvaluateOptions(**{**common, **values})

    return make


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


def test_a_run_without_more_gives_the_figures_of_its_result(
    trained: Path, options: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(options())["models"][0]
    assert capsys.readouterr().err == ""
    result = json.loads((trained / "run" / "result.json").read_text())
    assert found["text"]["loss"] == pytest.approx(result["validation_loss"], abs=1e-6)
    assert found["text"]["perplexity"] == pytest.approx(result["validation_perplexity"], rel=1e-5)
    assert found["text"]["bits_per_byte"] == pytest.approx(result["bits_per_byte"], rel=1e-5)
    assert (found["label"], found["split"], found["tasks"]) == ("switchlora r=4", "valid", None)
    named = options(data=(str(trained / "text.txt"),), split="valid", output=str(tmp_path / "named"))
    assert evaluate(named)["models"][0]["text"] == found["text"]
    written = json.loads((tmp_path / "out" / JSON).read_text())
    assert written["models"] == [found]
    assert written["versions"]["torch"] == torch.__version__


def test_every_token_of_a_text_counts_alike(trained: Path, options: Any, texts: Path) -> None:
    """Against one window after the other, token by token; the last is shorter."""
    found = evaluate(options(data=(str(texts),), seq_len=50, batch_size=3))["models"][0]["text"]
    model = AutoModelForCausalLM.from_pretrained(trained / "run")
    tokenizer = AutoTokenizer.from_pretrained(trained / "run")
    tokens = []
    for text in TEXTS:
        tokens += [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    losses = []
    for first in range(0, len(tokens), 50):
        window = torch.tensor([tokens[first : first + 50]])
        scores = torch.log_softmax(model(input_ids=window).logits[0, :-1].double(), -1)
        losses += (-scores[torch.arange(window.shape[1] - 1), window[0, 1:]]).tolist()
    assert len(tokens) % 50 > 1
    assert (found["num_tokens"], found["num_predicted"]) == (len(tokens), len(losses))
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert found["num_bytes"] == sum(len(text.encode()) for text in TEXTS)
    bits = found["loss"] / math.log(2) * len(tokens) / found["num_bytes"]
    assert found["bits_per_byte"] == pytest.approx(bits)


def test_data_that_changed_since_the_run_are_not_taken_for_its_own(
    trained: Path, options: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(trained / "run", tmp_path / "moved")
    (tmp_path / "text.txt").write_text("another text, of some lines\n" * 2000)
    told = (moved / "options.yaml").read_text().replace(str(trained / "text.txt"), str(tmp_path / "text.txt"))
    (moved / "options.yaml").write_text(told)
    evaluate(options(checkpoint=(str(moved),)))
    warning = capsys.readouterr().err
    assert "its data or its tokenizer changed since the run" in warning and warning.count("\n") == 1


def test_two_models_side_by_side_and_fewer_tokens(
    trained: Path, options: Any, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(trained / "run", tmp_path / "other")
    chosen = options(
        checkpoint=(str(trained / "run"), str(other)),
        labels=("one", "two"),
        data=(str(texts),),
        max_tokens=70,
        seq_len=32,
    )
    one, two = evaluate(chosen)["models"]
    assert one["text"] == two["text"]
    assert one["text"]["num_tokens"] == 70
    shown = capsys.readouterr().out
    assert "bits per byte" in shown
    assert [line.split()[0] for line in shown.splitlines() if line.startswith(("one ", "two "))] == ["one", "two"]


def task_folder(tmp_path: Path, name: str = "colours") -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir(exist_ok=True)
    rows = [{"question": f"def f{i}(", "choices": ["self", "zzqx"], "answer": i % 2} for i in range(6)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\n"
        "dataset_path: json\n"
        "dataset_kwargs:\n"
        f"  data_files: {{test: {folder / 'rows.jsonl'}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\n'
        "doc_to_target: answer\n"
        'doc_to_choice: "{{choices}}"\n'
        "metric_list:\n"
        "  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
        "metadata: {version: 1.0}\n"
    )
    return folder


def test_lm_eval_on_a_task_file_without_network(trained: Path, tmp_path: Path) -> None:
    """In a process of its own, as a user runs it: lm-eval and datasets keep much global state."""
    words = ["evaluate", "--checkpoint", str(trained / "run"), "--device", "cpu", "--threads", "1", "--batch-size", "4"]
    words += ["--tasks", "colours", "--include-path", str(task_folder(tmp_path)), "--output"]
    commands = [[*words, str(tmp_path / "out")], [*words, str(tmp_path / "few"), "--limit", "1", "--num-fewshot", "2"]]
    both = "import json, sys; from switchlora.cli import main; sys.exit(max(map(main, json.loads(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", both, json.dumps(commands)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / JSON).read_text())["models"][0]
    assert found["text"] is None
    model = AutoModelForCausalLM.from_pretrained(trained / "run")
    tokenizer = AutoTokenizer.from_pretrained(trained / "run")

    def score(question: str, choice: str) -> float:
        before, after = (tokenizer.encode(text) for text in (question, f"{question} {choice}"))
        logs = torch.log_softmax(model(input_ids=torch.tensor([after])).logits[0].detach().double(), -1)
        return sum(float(logs[i - 1, after[i]]) for i in range(len(before), len(after)))

    right = [max((0, 1), key=lambda k: score(f"def f{i}(", ["self", "zzqx"][k])) == i % 2 for i in range(6)]
    assert found["tasks"]["colours"]["acc"] == pytest.approx(sum(right) / 6)
    assert "colours acc" in done.stdout
    few = json.loads((tmp_path / "few" / JSON).read_text())["models"][0]["tasks"]["colours"]
    assert 0 < sum(right) < 6  # so that one question alone gives another figure than all
    assert few["acc"] in (0.0, 1.0)
    assert (found["tasks"]["colours"]["num_fewshot"], few["num_fewshot"]) == (0, 2)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"checkpoint": None}, ["--checkpoint: must be given; name the output folder of a finished run"]),
        ({"seq_len": 65}, ["--seq-len 65", "64 positions"]),
        ({"data": ("no/such/file.txt",)}, ["no/such/file.txt", "no such file"]),
        ({"data": ("hf:some/thing",)}, ["hf:some/thing", "--split valid"]),
        ({"tasks": ("colors",), "include_path": "TASKS"}, ["--tasks colors", "did you mean colours"]),
        ({"tasks": ("colours",), "include_path": "no/such"}, ["--include-path no/such", "no such folder"]),
        ({"tasks": ("colours",), "include_path": "BROKEN"}, ["--include-path: ", "bad.yaml, line 2", "is no YAML"]),
        ({"output": "TASKS/rows.jsonl"}, ["--output", "is a file"]),
        ({"output": "/proc/figures"}, ["--output /proc/figures", "nothing can be written in /proc"]),
    ],
)
def test_mistakes(options: Any, tmp_path: Path, changes: dict[str, Any], parts: list[str]) -> None:
    folder = str(task_folder(tmp_path))
    if changes.get("include_path") == "BROKEN":
        (tmp_path / "tasks" / "bad.yaml").write_text("task: other\n  metric: [\n")
        changes = {**changes, "include_path": folder}
    changes = {
        name: value.replace("TASKS", folder) if isinstance(value, str) else value for name, value in changes.items()
    }
    with pytest.raises(UserError) as refused:
        evaluate(options(**changes))
    assert "\n" not in str(refused.value)
    assert all(part in str(refused.value) for part in parts), str(refused.value)


def test_a_text_of_one_token_and_a_model_of_which_no_data_is_known(trained: Path, options: Any, tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").write_text("a")
    tiny = options(data=(str(tmp_path / "tiny.txt"),), output=str(tmp_path / "tiny"))
    assert evaluate(tiny)["models"][0]["text"]["num_predicted"] == 1
    foreign = shutil.copytree(trained / "run", tmp_path / "foreign", ignore=shutil.ignore_patterns("*.yaml"))
    with pytest.raises(UserError, match="--data: must be given"):
        evaluate(options(checkpoint=(str(foreign),)))
    bare = shutil.copytree(trained / "run", tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match="has no tokenizer"):
        evaluate(options(checkpoint=(str(bare),)))
    with pytest.raises(UserError, match="too small for one block"):
        evaluate(options(data=(str(tmp_path / "tiny.txt"),), seq_len=3, split="valid", overwrite=True))


def test_a_tokenizer_of_another_model_or_none_that_can_end_a_text(
    trained: Path, options: Any, texts: Path, tmp_path: Path
) -> None:
    """Also: what one model gave is kept where the next one fails."""
    small = AutoModelForCausalLM.from_pretrained(trained / "run")
    small.resize_token_embeddings(100)
    small.save_pretrained(tmp_path / "small")
    tokenizer = AutoTokenizer.from_pretrained(trained / "run")
    tokenizer.save_pretrained(tmp_path / "small")
    both = (str(trained / "run"), str(tmp_path / "small"))
    with pytest.raises(UserError, match=r"--checkpoint .*small: its tokenizer gives token \d+, and the model has 100"):
        evaluate(options(checkpoint=both, data=(str(texts),)))
    kept = json.loads((tmp_path / "out" / JSON).read_text())["models"]
    assert [one["checkpoint"] for one in kept] == [both[0]]
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path / "small")
    with pytest.raises(UserError, match=r"no end-of-text \(eos\) token"):
        evaluate(options(checkpoint=both, data=(str(texts),), output=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def test_the_data_of_a_run_that_are_not_here(trained: Path, options: Any, tmp_path: Path) -> None:
    copied = shutil.copytree(trained / "run", tmp_path / "moved")
    written = (copied / "options.yaml").read_text()
    (copied / "options.yaml").write_text(written.replace(str(trained / "text.txt"), "texts/text.txt"))
    with pytest.raises(UserError) as refused:
        evaluate(options(checkpoint=(str(copied),)))
    assert str(refused.value) == (
        f"--checkpoint {copied}: its run read data that are not here (--data texts/text.txt: no such file or folder); "
        "start where that path leads there, or give --data"
    )


def test_text_in_which_nothing_can_be_predicted(options: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="there is no text in it of which a token could be predicted"):
        evaluate(options(data=(str(tmp_path / "empty.jsonl"),)))


def test_nothing_is_overwritten_unasked(options: Any, texts: Path) -> None:
    evaluate(options(data=(str(texts),)))
    with pytest.raises(UserError, match="--overwrite"):
        evaluate(options(data=(str(texts),)))
    evaluate(options(data=(str(texts),), overwrite=True))


@pytest.mark.parametrize("absent", ["lm_eval.tasks", "lm_eval.models.huggingface", "accelerate"])
def test_without_lm_eval_or_what_it_needs(options: Any, monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    package = absent.partition(".")[0]
    if package != "lm_eval":
        monkeypatch.delitem(sys.modules, "lm_eval.models.huggingface", raising=False)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(UserError, match=rf"needs the package {package}; .* -e '\.\[eval\]'"):
        tasks_module.Tasks(options(tasks=("arc_easy",)))


def test_options_of_tasks_without_tasks(options: Any) -> None:
    with pytest.raises(UserError, match="--limit 3: is for --tasks"):
        options(limit=3)
