"""README.md of the output folder: what the model is, where it comes from, how good it is, how to load it.

The front matter is what the Hugging Face hub reads. The licence is left open on purpose: it depends on the data, which
only the person who trained the model knows.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

METHODS = {
    "switchlora": (
        "**SwitchLoRA** ([arXiv 2406.06564](https://arxiv.org/abs/2406.06564)) trains low-rank factors *A* and *B* of "
        "every linear layer instead of its weight, so that gradients and optimizer state shrink with the rank. At "
        "every step a few vectors of the factors are exchanged for others, without changing what the layer computes; "
        "over the run the updates cover the full space, which a fixed pair of factors cannot. What is stored here is "
        "the dense weight: a plain model, without factors."
    ),
    "switchlora-muon": (
        "**SwitchLoRA** ([arXiv 2406.06564](https://arxiv.org/abs/2406.06564)) with the rule of Muon: low-rank "
        "factors of every linear layer are trained by orthogonalised momentum in place of AdamW, and a few of their "
        "vectors are exchanged at every step. What is stored here is the dense weight: a plain model, without factors."
    ),
    "switchlora-polar": (
        "**SwitchLoRA** ([arXiv 2406.06564](https://arxiv.org/abs/2406.06564)) with a step of the whole weight: "
        "low-rank factors of every linear layer are trained, a few of their vectors are exchanged at every step, and "
        "the weight moves along its own gradient, too, orthogonalised and without optimizer state. What is stored here "
        "is the dense weight: a plain model, without factors."
    ),
    "lora": (
        "**LoRA** trains low-rank factors *A* and *B* of every linear layer instead of its weight. All updates of a "
        "layer together have at most the rank of the factors. What is stored here is the dense weight."
    ),
    "full": "**Full-rank training**: every weight has its own gradient and optimizer state.",
}
RESULTS = (
    ("validation_loss", "validation loss (nats per token)", "{:.4f}"),
    ("validation_perplexity", "validation perplexity", "{:.2f}"),
    ("bits_per_byte", "bits per byte", "{:.4f}"),
    ("steps", "optimizer steps", "{:,}"),
    ("tokens", "training tokens", "{:,}"),
    ("total_parameters", "parameters", "{:,}"),
    ("trainable_parameters", "trained parameters", "{:,}"),
    ("switches_done", "vectors switched", "{:,}"),
    ("tokens_per_second", "tokens per second", "{:,.0f}"),
    ("wall_seconds", "time (seconds)", "{:,.0f}"),
    ("peak_memory_bytes", "peak memory (bytes)", "{:,}"),
)
HARDWARE = ("device", "gpu", "cpu", "threads", "world_size", "python", "torch", "transformers", "switchlora")
MAX_VALIDATIONS = 10  # rows of the validation table: evenly spread, the last one included


def write_model_card(path: Path, *, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the card. result: what result.json holds; rows: of metrics.jsonl."""
    path = Path(path)
    path.write_text(model_card(path.resolve().parent.name, result, rows), encoding="utf-8")


def model_card(name: str, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The card of the model `name` as Markdown with front matter. What the result does not hold is left out."""
    config = result.get("config", {})
    return (
        "\n\n".join(
            [
                _front_matter(result),
                f"# {name}",
                f"A language model ({_text(config.get('model', 'unknown'))}), trained on "
                f"{_text(config.get('data', 'unknown data'))} with `{result['method']}`.",
                METHODS.get(result["method"], f"Trained with the method `{result['method']}` of switchlora."),
                "## Load it",
                _fenced(_LOADING, "python"),
                "Replace `PATH` by this folder. A text sample is in [sample.txt](sample.txt), all numbers are in "
                "[result.json](result.json), those of each step in `metrics.jsonl`.",
                "## Results",
                "![Loss over the steps of the run](loss.png)",
                _table(
                    ("", ""), ((label, form.format(result[key])) for key, label, form in RESULTS if _has(result, key))
                ),
                *_validations(rows),
                "## Command",
                _fenced(str(result.get("command", "unknown")), "bash"),
                "Run on " + ", ".join(f"{key} {_text(result[key])}" for key in HARDWARE if _has(result, key)) + ".",
                "## Configuration",
                _table(("option", "value"), ((f"`--{key.replace('_', '-')}`", _text(config[key])) for key in config)),
                "## Limits",
                _LIMITS,
            ]
        )
        + "\n"
    )


_LOADING = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
inputs = tokenizer("The", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))"""

_LIMITS = """- A base model: it continues text. It was neither tuned to follow instructions nor made safe,
  and what it writes may be wrong, offensive, or copied from its training data.
- It knows no more than its training data, and the numbers above hold for data like it. Perplexities of models with
  different tokenizers cannot be compared; bits per byte can, on the same text.
- One run with one seed: differences to other runs of the size that another seed makes mean nothing.
- No licence has been chosen for these weights. Set `license` in the head of this file before you publish them."""


def _front_matter(result: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            "license: other",
            "license_name: not-chosen",
            "tags:",
            "- pre-training",
            f"- {result['method']}",
            "---",
        ]
    )


def _validations(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = [row for row in rows if _has(row, "validation_loss")]
    if len(found) < 2:
        return []
    stride = -(-len(found) // MAX_VALIDATIONS)
    shown = found[::-1][::stride][::-1]
    table = _table(
        ("step", "validation loss"), ((f"{row['step']:,}", f"{row['validation_loss']:.4f}") for row in shown)
    )
    return ["During training, on the first part of the validation text:", table]


def _table(head: tuple[str, str], body: Iterable[tuple[str, str]]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|---|---|", *(f"| {left} | {right} |" for left, right in body)])


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _text(value: object) -> str:
    """A value in a table or a line: lists joined, no line breaks, and no bar that would end a cell."""
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    if value is None:
        value = "none"
    return " ".join(str(value).split()).replace("|", "\\|")


def _has(values: Mapping[str, Any], key: str) -> bool:
    return values.get(key) is not None
