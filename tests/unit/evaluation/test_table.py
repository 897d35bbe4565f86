"""The table of `switchlora evaluate`: a row a model, and nothing in it that was not found."""

from typing import Any

from switchlora.evaluation.table import table

TEXT = {"perplexity": 12.3456, "bits_per_byte": 1.23456, "loss": 2.5133, "num_tokens": 12345}
TASK = {"acc": 0.5, "acc_stderr": 0.25, "note": "x", "version": 1.0, "num_fewshot": 0.0}


def model(label: str, text: Any = None, tasks: Any = None) -> dict[str, Any]:
    return {"label": label, "text": text, "tasks": tasks}


def test_text_and_tasks_side_by_side() -> None:
    filtered = {"exact_match,strict": 0.125, "exact_match_stderr,strict": 0.0625, "exact_match,loose": 1.0}
    shown = table([model("one", TEXT, {"a": TASK, "b": filtered}), model("two", None, {"a": {"acc": 1.0}})])
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in shown.splitlines()]
    assert rows == [
        [],
        ["perplexity", "bits per byte", "loss", "tokens"],
        ["one", "12.346", "1.2346", "2.5133", "12,345"],
        ["two"],
        [],
        ["a acc", "b exact_match,strict", "b exact_match,loose"],
        ["one", "0.5000 ± 0.2500", "0.1250 ± 0.0625", "1.0000"],
        ["two", "1.0000"],
    ]


def test_only_what_was_asked_for() -> None:
    assert "perplexity" not in table([model("one", tasks={"a": TASK})])
    assert "acc" not in table([model("one", TEXT)])
