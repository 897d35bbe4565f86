"""What storing a run in bfloat16 costs in validation loss: against float32, over seeds, and with rounding to nearest.

    python experiments/bf16/run.py --output experiments/bf16/results [--modes fp32 bf16 ...] [--seeds 0 1 2]

Each mode is `switchlora pretrain` with the same data, batches, rates and number of steps; each run leaves one JSON, and
a finished one is not run again. The modes differ in what is stored how:

    fp32         everything in float32
    bf16         weights and ordinary parameters (embeddings, head, norms) in bf16, stochastically rounded; factors and
                 moments in float32
    bf16-all     factors, candidates and moments in bf16, too
    nearest      as bf16, rounded to nearest
    nearest-all  as bf16-all, rounded to nearest

Most CPUs have no instructions for bf16 products, and torch's substitute is about ten times slower than float32 ones.
`WideProducts` therefore computes each product of bf16 matrices (and attention's backward pass) in float32 and rounds
the result once, which is what hardware with bf16 products does (products exact, sums in float32, one rounding), up to
the order of the sums.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import switchlora
from switchlora import moving, weight_update

SHARED = {
    "model": "tiny", "data": ("stdlib",), "method": "switchlora", "steps": 2000, "batch_size": 4, "seq_len": 128,
    "eval_every": 250, "save_every": 0, "device": "cpu",
}  # fmt: skip
ALL = {"dtype": "bf16", "factor_dtype": "bf16", "moment_dtype": "bf16"}
MODES: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"dtype": "bf16"},
    "bf16-all": ALL,
    "nearest": {"dtype": "bf16"},
    "nearest-all": ALL,
}
PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


class WideProducts(TorchDispatchMode):
    """Products of bf16 matrices with float32 sums and one rounding."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in PRODUCTS and args[0].dtype == torch.bfloat16:
            wide = [a.float() if _is_bf16(a) else a for a in args]
            done = function(*wide, **(kwargs or {}))
            return done.bfloat16() if isinstance(done, torch.Tensor) else (done[0].bfloat16(), *map(_narrow, done[1:]))
        return function(*args, **(kwargs or {}))


def _is_bf16(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16


def _narrow(value: torch.Tensor) -> torch.Tensor:
    return value.bfloat16()


def to_nearest(target: torch.Tensor, value: torch.Tensor, key: int, first_row: int = 0) -> torch.Tensor:
    """In the place of `precision.store_`."""
    return target.copy_(value)


@contextlib.contextmanager
def mode_of(name: str) -> Iterator[None]:
    """What the options cannot say."""
    with contextlib.ExitStack() as stack:
        if name != "fp32":
            stack.enter_context(WideProducts())
            step = switchlora.SwitchLora.step

            def step_outside(*args: Any, **kwargs: Any) -> Any:
                with _disable_current_modes():  # the optimizer has no bf16 products
                    return step(*args, **kwargs)

            stack.enter_context(mock.patch.object(switchlora.SwitchLora, "step", step_outside))
        if name.startswith("nearest"):
            for module in (moving, weight_update):
                stack.enter_context(mock.patch.object(module, "store_", to_nearest))
        yield


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("experiments/bf16/results"))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/bf16"), help="where the runs themselves go")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for name in arguments.modes:
            path = arguments.output / f"{name}-seed{seed}.json"
            if path.exists():
                continue
            run = str(arguments.runs / path.stem)
            options = {**SHARED, **MODES[name], "seed": seed, "output": run, "threads": arguments.threads}
            with mode_of(name):
                result = switchlora.pretrain(switchlora.PretrainOptions(**options))
            curve = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text("utf-8").splitlines()]
            points = [[row["step"], row["validation_loss"]] for row in curve if "validation_loss" in row]
            record = {"mode": name, "script": " ".join(sys.argv), "validation_curve": points, **result}
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
