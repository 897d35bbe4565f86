"""What every method holds at 1.3B, counted from the tensors of the real models and optimizers, without storage.

    python -m benchmarks.held   # half a minute; writes benchmarks/held.json, prints the table of docs/performance.md

`switchlora pretrain --dry-run` of each row, with bfloat16 weights. 8-bit AdamW is not among our methods: its row is
AdamW's with two bytes of moments a parameter and a float32 scale for each block of 256 of either moment.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from switchlora.machine.description import describe_machine
from switchlora.training.dry_run import plan
from switchlora.training.options import PretrainOptions

OUTPUT = Path(__file__).with_suffix(".json")
SHAPE = {"model": "1.3b", "dtype": "bf16"}
NARROW = {"factor_dtype": "bf16", "moment_dtype": "bf16", "candidates": "fresh"}
BYTES_OF_8_BIT_MOMENTS = 2 * (1 + 4 / 256)
ROWS: list[dict[str, Any]] = [
    {"method": "full"},
    {"method": "muon"},
    *({"method": method, "r": r} for method in ("galore", "fira", "apollo") for r in (512, 256)),
    {"method": "apollo-mini"},
    {"method": "racs"},
    *({"method": "lora", "r": r} for r in (512, 256)),
    *({"method": "switchlora", "r": r, **more} for r in (512, 256) for more in ({}, NARROW)),
    *({"method": "switchlora-muon", "r": 512, **more} for more in ({}, NARROW)),
    *({"method": "switchlora-polar", "r": 128, "interval": float("inf"), **more} for more in ({}, NARROW)),
]


def counted(options: dict[str, Any]) -> dict[str, Any]:
    """A row: the options, and bytes by kind."""
    held = dataclasses.asdict(plan(PretrainOptions(**SHAPE, **options)))
    kinds = ("weight_bytes", "gradient_bytes", "optimizer_bytes", "candidate_host_bytes")
    return {"options": {name: str(value) for name, value in options.items()}, **{kind: held[kind] for kind in kinds}}


def eight_bit(full: dict[str, Any]) -> dict[str, Any]:
    """By formula; bfloat16 weights have two bytes a parameter."""
    moments = round(full["weight_bytes"] / 2 * BYTES_OF_8_BIT_MOMENTS)
    return {**full, "options": {"method": "8-bit AdamW, by formula"}, "optimizer_bytes": moments}


def table(rows: list[dict[str, Any]]) -> str:
    """For docs/performance.md, in GB; without gradients for those who free each layer's as soon as it is used.

    Candidates are in the host's memory.
    """
    lines = [
        "| method | r | formats | weights | gradients | optimizer | together | without gradients | + candidates |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        options = row["options"]
        weights, gradients, optimizer, candidates = (
            row[f"{kind}_bytes"] for kind in ("weight", "gradient", "optimizer", "candidate_host")
        )
        method = options["method"] + (", never switched" if options.get("interval") == "inf" else "")
        formats = "factors and moments bf16, `fresh`" if "factor_dtype" in options else "default"
        held = (weights, gradients, optimizer, weights + gradients + optimizer, weights + optimizer)
        cells = [*(f"{each / 1e9:.2f}" for each in held), f"{candidates / 1e9:.2f}" if candidates else ""]
        lines.append(f"| {method} | {options.get('r', '')} | {formats} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Count what every method holds at 1.3B.")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    full, *others = map(counted, ROWS)
    record = {
        "format": 1, "command": "python -m benchmarks.held", "machine": describe_machine(), "shape": SHAPE,
        "rows": [full, eight_bit(full), *others],
    }  # fmt: skip
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record["rows"]))


if __name__ == "__main__":
    main()
