"""What was found, for the terminal: a row a model."""

from typing import Any


def table(models: list[dict[str, Any]]) -> str:
    """A row a model for the terminal: the text's figures, then every metric of every task with its error."""
    rows = []
    if any(model["text"] for model in models):
        rows.append(["", "perplexity", "bits per byte", "loss", "tokens"])
        for model in models:
            found = model["text"]
            rows.append(
                [model["label"]]
                + (["", "", "", ""] if found is None else
                   [f"{found['perplexity']:.3f}", f"{found['bits_per_byte']:.4f}", f"{found['loss']:.4f}",
                    f"{found['num_tokens']:,}"])
            )  # fmt: skip
    lines = ["", *_aligned(rows)] if rows else []
    names = list(dict.fromkeys(task for model in models for task in model["tasks"] or ()))
    if names:
        metrics = {task: _metrics(models, task) for task in names}
        rows = [["", *(f"{task} {metric}" for task in names for metric in metrics[task])]]
        rows += [
            [model["label"], *(_cell(model, task, metric) for task in names for metric in metrics[task])]
            for model in models
        ]
        lines += ["", *_aligned(rows)]
    return "\n".join(lines)


def _metrics(models: list[dict[str, Any]], task: str) -> list[str]:
    first = next(model["tasks"][task] for model in models if task in (model["tasks"] or ()))
    return [
        name
        for name, value in first.items()
        if isinstance(value, float) and "_stderr" not in name and name not in ("version", "num_fewshot")
    ]


def _cell(model: dict[str, Any], task: str, metric: str) -> str:
    found = (model["tasks"] or {}).get(task, {})
    if metric not in found:
        return ""
    error = found.get(metric.replace(",", "_stderr,") if "," in metric else f"{metric}_stderr")
    return f"{found[metric]:.4f}" + (f" ± {error:.4f}" if isinstance(error, float) else "")


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
