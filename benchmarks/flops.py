"""FLOPs of forward and backward against full rank, counted, for the shapes that the docs speak of.

    python -m benchmarks.flops          # writes benchmarks/flops.json and prints the tables of docs/flops.md

Nothing is computed and no memory is taken: models are built and run without storage. The counts depend on torch's and
transformers' versions at most, not on the machine. Each row is one shape at one rank; `ratio` is without the weight
update, which falls due once per optimizer step and so has columns of its own. LoRA with an adapter branch is not run
but put in by formula.
"""

import argparse
import importlib.metadata
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from switchlora import SwitchLoraConfig, SwitchLoraLinear, convert
from switchlora.bench.options import SHAPES as BENCH_SHAPES
from switchlora.flops import (
    adapter_branch_flops,
    count_forward_backward,
    full_rank_flops,
    layer_flops,
    model_weight_update_flops,
    tokens_for_share,
)
from switchlora.training.models import preset_config, random_model
from switchlora.training.presets import Preset

OUTPUT = Path(__file__).with_suffix(".json")
FORWARD_TOKENS = 8192  # of one forward pass
SHARE = 0.01  # below which the weight update is not worth a thought
EXCESS = 0.03  # over full rank, which no rank should exceed

# Those of `switchlora bench`: the CPU benchmark's own, 16 sequences a step as in the timings, and the paper's.
SHAPES = {name: shape for name, shape in BENCH_SHAPES.items() if name != "tiny"}


def ranks_of(hidden_size: int) -> dict[str, int]:
    """The ranks that are counted; h - 1 is the largest that can switch in a square layer."""
    fractions = {f"h/{part}": hidden_size // part for part in (16, 8, 4, 2)}
    return {**fractions, "h-1": hidden_size - 1}


def build(name: str) -> nn.Module:
    """The model of a row, on the meta device."""
    config = preset_config(SHAPES[name], SHAPES[name].seq_len)
    return random_model(config, seed=0, dtype=torch.float32, meta=True)


def measure(name: str) -> list[dict[str, Any]]:
    """The rows of one shape, one for each rank."""
    shape = SHAPES[name]
    batch = (FORWARD_TOKENS // shape.seq_len, shape.seq_len)
    full = count_forward_backward(build(name), *batch)
    rows = []
    for label, r in ranks_of(shape.hidden_size).items():
        model = build(name)
        convert(model, SwitchLoraConfig(r=r))
        low, update = count_forward_backward(model, *batch), model_weight_update_flops(model)
        layers = [layer for layer in model.modules() if isinstance(layer, SwitchLoraLinear)]
        dims = [(layer.out_features, layer.in_features) for layer in layers]
        branch = sum(
            adapter_branch_flops(m, n, r, FORWARD_TOKENS) - full_rank_flops(m, n, FORWARD_TOKENS) for m, n in dims
        )
        rows.append({
            "shape": name, "rank": label, "r": r, "num_sequences": batch[0], "seq_len": batch[1],
            "full_rank_flops": full, "switchlora_flops": low, "ratio": low / full,
            "adapter_branch_ratio": (full + branch) / full,
            "weight_update_flops": update,
            "ratio_with_update": (low + update) / full,
            "tokens_per_step_for_share": tokens_for_share(update, low / FORWARD_TOKENS, SHARE),
        })  # fmt: skip
    return rows


def limits(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one shape: up to which rank it is not dearer than full rank, and what it takes to be so at any rank.

    The rest of the model (head, attention) is the counted whole less the formula's layers, so ranks in between need no
    counting. Near full rank the excess per forward pass is the dense way's 4mnr per layer, as many FLOPs as the weight
    update has, whatever the tokens.
    """
    shape, full = SHAPES[name], rows[0]["full_rank_flops"]
    h, ffn, T = shape.hidden_size, shape.ffn_size, FORWARD_TOKENS
    dims = shape.num_layers * [*4 * [(h, h)], (ffn, h), (ffn, h), (h, ffn)]
    layers = sum(full_rank_flops(m, n, T) for m, n in dims)

    def largest_rank(most: float) -> int:
        ratios = {r: (full - layers + sum(layer_flops(m, n, r, T) for m, n in dims)) / full for r in range(1, h)}
        return max(r for r, ratio in ratios.items() if ratio <= most)

    last = rows[-1]
    return {
        "shape": name, "hidden_size": h, "largest_rank_at_1": largest_rank(1.0),
        "largest_rank_at_excess": largest_rank(1 + EXCESS),
        "tokens_per_forward_for_any_rank": math.ceil(last["weight_update_flops"] * T / (EXCESS * full)),
        "tokens_per_step": shape.batch_size * shape.seq_len,
        "weight_update_share_at_quarter": _update_share(next(row for row in rows if row["rank"] == "h/4"), shape),
    }  # fmt: skip


def _update_share(row: dict[str, Any], shape: Preset) -> float:
    """Of the preset's step, whose tokens go through in passes of FORWARD_TOKENS."""
    passes = shape.batch_size * shape.seq_len / FORWARD_TOKENS
    return float(row["weight_update_flops"] / (row["weight_update_flops"] + passes * row["switchlora_flops"]))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as the docs show them."""
    head = (
        "| shape | rank | r | forward + backward | with one weight update | update under 1 % of a step from "
        "| LoRA, adapter branch |\n|---|---|---:|---:|---:|---:|---:|"
    )
    lines = (
        f"| {row['shape']} | {row['rank'].replace('-', ' − ')} | {row['r']} | {row['ratio']:.3f} | "
        f"{row['ratio_with_update']:.3f} | {row['tokens_per_step_for_share']:,} tokens | "
        f"{row['adapter_branch_ratio']:.3f} |"
        for row in rows
    )
    return "\n".join([head, *lines])


def limits_table(rows: list[dict[str, Any]]) -> str:
    """The limits as the docs show them."""
    head = (
        "| shape | h | largest r at 1.00 | largest r at 1.03 | 1.03 at any rank, from tokens per pass | "
        "weight update at h/4, of a step of |\n|---|---:|---:|---:|---:|---:|"
    )
    lines = (
        f"| {row['shape']} | {row['hidden_size']} | {row['largest_rank_at_1']} | {row['largest_rank_at_excess']} | "
        f"{row['tokens_per_forward_for_any_rank']:,} | {row['weight_update_share_at_quarter']:.2%} of "
        f"{row['tokens_per_step']:,} tokens |"
        for row in rows
    )
    return "\n".join([head, *lines])


def main() -> None:
    """Count all shapes, write the file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file to write")
    output = parser.parse_args().output
    rows = [row for name in SHAPES for row in measure(name)]
    results: dict[str, Any] = {
        "command": "python -m benchmarks.flops",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("switchlora", "torch", "transformers")},
        },
        "tokens_per_forward": FORWARD_TOKENS,
        "share": SHARE,
        "excess": EXCESS,
        "rows": rows,
        "limits": [limits(name, [row for row in rows if row["shape"] == name]) for name in SHAPES],
    }
    output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{table(rows)}\n\n{limits_table(results['limits'])}")


if __name__ == "__main__":
    main()
