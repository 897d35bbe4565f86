"""Peak memory of one contestant alone, in a process of its own: `python -m switchlora.bench.peak` < request.json.

On a GPU it is the allocator's peak. On the CPU it is the peak of the resident size (Linux's VmHWM) over some steps,
less the resident size before the model was built, with torch, transformers and the kernels' own buffers already loaded
by a small pilot model. Interleaved contestants share one process and one allocator, so there is no other way to tell
whose peak it was.

On the CPU the candidates that a GPU's user keeps in host memory are part of it.
"""

import ctypes
import gc
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from switchlora.bench.contestants import Contestant
from switchlora.bench.options import BenchOptions
from switchlora.machine.signals import stop_with_parent

NUM_STEPS = 3  # in the first, torch's optimizers have no state yet
PILOT = {"model": "tiny", "seq_len": 16}


def peak_bytes(contestant: Contestant, options: BenchOptions, sequences: int) -> tuple[int | None, str]:
    """The peak in a new process, and "" or why there is none."""
    request = {"method": contestant.method, "r": contestant.r, "sequences": sequences, "options": options.to_dict()}
    done = subprocess.run(
        [sys.executable, "-m", "switchlora.bench.peak"], input=json.dumps(request), capture_output=True, text=True,
        check=False, preexec_fn=stop_with_parent,
    )  # fmt: skip
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        return None, (said[-1] if said else f"ended with code {done.returncode}")[:200]
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"]), ""


def measure_alone(contestant: Contestant, options: BenchOptions, sequences: int) -> int:
    """The peak in this process, which has done nothing else."""
    import torch

    from switchlora.bench.rounds import batch
    from switchlora.bench.trainee import base_model, build, compiling
    from switchlora.machine.devices import choose_device, peak_memory_bytes, set_threads, use_products

    set_threads(options.threads)
    device = choose_device(options.device)
    use_products(device, options.cpu_products)

    def train(settings: BenchOptions, r: int | None, num_sequences: int, num_steps: int) -> int:
        with compiling(settings, 1):
            trainee = build(replace(contestant, r=r), base_model(settings, device), settings, device, copied=False)
            _forget_peak(device)
            for number in range(num_steps):
                trainee.step(batch(settings, num_sequences, number).to(device))
        return peak_memory_bytes(device)

    if device.type == "cuda":
        torch.cuda.set_device(device)
        return train(options, contestant.r, sequences, NUM_STEPS)
    pilot = replace(options, ranks=None, compile=False, **PILOT)  # type: ignore[arg-type]
    train(pilot, None if contestant.r is None else pilot.all_ranks[0], 1, 1)
    _give_back()
    before = resident_bytes()
    return train(options, contestant.r, sequences, NUM_STEPS) - before


def resident_bytes() -> int:
    """The resident size of this process (Linux)."""
    found = re.search(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return int(found[1]) * 1024


def _forget_peak(device: Any) -> None:
    """Let the peak begin here: building a model has a higher one than training it, and is not what is asked."""
    import torch

    if device.type == "cuda":
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
        return
    _give_back()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM


def _give_back() -> None:
    """Hand free memory back to the system, so that the resident size is what is held."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def main() -> None:
    """Read a request from standard input, measure, and print the answer as the last line."""
    request = json.load(sys.stdin)
    options = BenchOptions.merge(request["options"])
    peak = measure_alone(Contestant(request["method"], request["r"]), options, request["sequences"])
    print(json.dumps({"peak_bytes": peak}))


if __name__ == "__main__":
    main()
