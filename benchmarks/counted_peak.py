"""The peak of device memory at 1.3B, counted where there is no GPU: every allocation of real steps on a pretend one.

    python -m benchmarks.counted_peak   # writes benchmarks/counted_peak.json, some 15 minutes and 17 GB of memory

What the memory rows of `accelerator.sh` measure, one sequence with checkpointed activations, on the pretend GPU of
`tests/accelerator`: the model's operations are computed on the CPU, Triton's kernels are left out (they allocate
nothing), and the peak is that of all tensors that lived at once, rounded as CUDA's caching allocator rounds. Not in it:
what CUDA's kernels and libraries take for themselves, and what the cache wastes. Attention is written out here, with
its (tokens, tokens) matrices, which kernels on a GPU avoid.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from switchlora.bench.contestants import Contestant
from switchlora.bench.options import BenchOptions
from switchlora.bench.peak import peak_bytes
from switchlora.machine.description import describe_machine
from tests.accelerator import pretend_gpu

OUTPUT = Path(__file__).with_suffix(".json")
OPTIONS = {
    "model": "1.3b", "dtype": "bf16", "factor_dtype": "bf16", "seq_len": 512, "sequences": (1,), "ranks": (512,),
    "checkpoint_activations": True, "device": "cuda", "threads": 2,
}  # fmt: skip
METHODS = [("full", None), ("switchlora", 512), ("switchlora-fused", 512)]
MOMENTS = ["fp32", "bf16"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the peak of device memory on a pretend GPU.")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        library = pretend_gpu.build(Path(folder) / "libpretend_gpu.so")
        os.environ |= pretend_gpu.environment(library, kernels=False)  # of the processes that are measured
        for moments in MOMENTS:
            for method, r in METHODS:
                options = BenchOptions(**OPTIONS, moments=moments)
                found, failure = peak_bytes(Contestant(method, r), options, 1)
                if found is None:
                    raise SystemExit(f"{method}, {moments} moments: {failure}")
                full = next((row["peak_bytes"] for row in rows if row["moments"] == moments), found)
                rows.append({"moments": moments, "method": method, "r": r, "peak_bytes": found, "ratio": found / full})
                print(f"{moments} moments, {method}: {found / 1e9:.2f} GB, {found / full:.3f}", flush=True)
    record = {
        "format": 1, "command": "python -m benchmarks.counted_peak", "machine": describe_machine(),
        "options": OPTIONS, "rows": rows,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
