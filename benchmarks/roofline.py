"""What to expect of a step on an accelerator that is not at hand: every operation as fast as products or memory allow.

    python -m benchmarks.roofline       # writes benchmarks/roofline.json and prints the table of docs/cuda.md

A prediction, not a measurement. A step of a LLaMA in bfloat16 is run without storage and arithmetic, and every
operation that it launches takes the time of its FLOPs or that of the bytes that it reads and writes, whichever is
longer, and `GAP_SECONDS` besides. The optimizers are put in by formula (`kernels`, torch's fused AdamW). Left out are
caches, which bring times down; shapes that tensor cores do not like, launches that the host cannot keep up with, and
whatever else takes longer than it must, which bring them up. The rates are shares of an H200's best that large products
and copies are known to reach; the ratio of two steps depends on them less than the steps do.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, shape_wrapper

from switchlora import SwitchLoraConfig, SwitchLoraLinear, convert
from switchlora.bench.options import SHAPES
from switchlora.flops import left_out_by_torch, without_storage
from switchlora.machine.description import version_of
from switchlora.training.models import preset_config, random_model

OUTPUT = Path(__file__).with_suffix(".json")
PRODUCTS_PER_SECOND = {torch.bfloat16: 0.75 * 989e12, torch.float32: 0.75 * 494e12}  # FLOPs; float32 in TF32
BYTES_PER_SECOND = 0.85 * 4.8e12
GAP_SECONDS = 2e-6  # of a launch, beside what it does
SEQ_LEN = 512
ROWS = [("350m", 16), ("350m", 64), ("1.3b", 16), ("1.3b", 32)]  # and sequences


def bytes_of(tensor: Tensor) -> int:
    """That it takes in memory; of an expanded one those that are there."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class Roofline(TorchDispatchMode):
    """Sums up the seconds of what runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.seconds, self.num_launches = 0, 0.0, 0
        added = {operation: shape_wrapper(formula) for operation, formula in left_out_by_torch().items()}
        self.formulas = {**flop_registry, **added}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        if (
            func.is_view
            or name.startswith("prim::")
            or "empty" in name
            or name in ("aten::detach", "aten::_unsafe_view")
        ):
            return out
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        written = [t for t in tree_leaves(out) if isinstance(t, Tensor)]  # also what was changed in place
        if name in ("aten::copy_", "aten::fill_", "aten::zero_"):
            read = read[1:]
        elif name.startswith("aten::nll_loss"):
            read = [t for t in read if t.dim() == 1]  # of the logits a number a token
        num_bytes = sum(map(bytes_of, read)) + sum(map(bytes_of, written))
        formula = self.formulas.get(func.overloadpacket)
        flops = formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        of_products = flops / PRODUCTS_PER_SECOND[read[0].dtype] if flops else 0.0
        self.flops += flops
        self.num_launches += 1
        self.seconds += max(of_products, num_bytes / BYTES_PER_SECOND) + GAP_SECONDS
        return out


def timed(work: Callable[[], None]) -> Roofline:
    """Of a pass without storage. Its tensors are of a class of their own, with which layers form no chains; on a device
    they do."""
    with Roofline() as found, mock.patch("switchlora.layer.can_chain", lambda x: x.requires_grad and not x.is_leaf):
        work()
    return found


def optimizer_seconds(model: nn.Module) -> float:
    """As `switchlora bench --dtype bf16` has them: full rank's fused AdamW, whose moments are bfloat16; or the kernels,
    whose factors and moments are float32, in a step without a switch."""
    layers = [layer for layer in model.modules() if isinstance(layer, SwitchLoraLinear)]
    own = {id(p) for layer in layers for p in (layer.weight, layer.lora_A, layer.lora_B)}
    ordinary = sum(p.numel() for p in model.parameters() if id(p) not in own)
    moment = 4 if layers else 2
    seconds = ordinary * (3 * 2 + 4 * moment) / BYTES_PER_SECOND  # weight and moments read and written, gradient read
    for layer in layers:
        m, n, r = layer.out_features, layer.in_features, layer.r
        rule, operands = 7 * 4, 4 * 4  # factor and moments read and written, gradient; (A', dA), written and read
        product = 4 * m * n * r / PRODUCTS_PER_SECOND[torch.float32]
        of_weight = 4 + 4 + 2 * 2  # the product written and read, W read and written
        seconds += (r * (m + n) * (rule + operands) + m * n * of_weight) / BYTES_PER_SECOND + product
    return seconds


def predict(name: str, num_sequences: int) -> list[dict[str, Any]]:
    """Full rank, and SwitchLoRA at h/8 and h/4."""
    rows: list[dict[str, Any]] = []
    for r in (None, SHAPES[name].hidden_size // 8, SHAPES[name].hidden_size // 4):
        model = random_model(preset_config(SHAPES[name], SEQ_LEN), seed=0, dtype=torch.bfloat16, meta=True)
        if r is not None:
            convert(model, SwitchLoraConfig(r=r))
        found = without_storage(model, num_sequences, SEQ_LEN, timed)
        update = optimizer_seconds(model)
        seconds = found.seconds + update
        full = rows[0] if rows else {"seconds": seconds, "flops": found.flops}
        rows.append({
            "shape": name, "num_sequences": num_sequences, "seq_len": SEQ_LEN, "r": r,
            "flops": found.flops, "num_launches": found.num_launches,
            "forward_backward_seconds": found.seconds, "optimizer_seconds": update, "seconds": seconds,
            "flops_ratio": found.flops / full["flops"], "ratio": seconds / full["seconds"],
        })  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """For docs/cuda.md."""
    lines = [
        "| shape | sequences | r | forward, backward | optimizer | to full rank | FLOPs of forward, backward |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        ratios = "| | |" if row["r"] is None else f"| {row['ratio']:.3f} | {row['flops_ratio']:.3f} |"
        lines.append(
            f"| {row['shape']} | {row['num_sequences']} | {row['r'] or 'full rank'} "
            f"| {1e3 * row['forward_backward_seconds']:.0f} ms | {1e3 * row['optimizer_seconds']:.1f} ms {ratios}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict steps on an accelerator.")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    rows = [row for name, num_sequences in ROWS for row in predict(name, num_sequences)]
    packages = {name: version_of(name) for name in ("torch", "transformers")}
    record = {
        "format": 1, "command": "python -m benchmarks.roofline",
        "versions": {"python": platform.python_version(), **packages},
        "products_per_second": {str(dtype): rate for dtype, rate in PRODUCTS_PER_SECOND.items()},
        "bytes_per_second": BYTES_PER_SECOND, "gap_seconds": GAP_SECONDS, "rows": rows,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
