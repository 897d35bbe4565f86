"""What two processes hand to collectives in a step, counted, beside the planner's formula.

`python -m benchmarks.traffic`: the shape of 1.3B with every width divided by 16, r = h/4, fp32: four short runs under
torchrun on this machine, over gloo on the CPU. Writes benchmarks/traffic.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from switchlora.planning.estimate import plan_of
from switchlora.planning.options import PlanOptions

OUTPUT = Path(__file__).parent / "traffic.json"
SHAPE = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 341, "num_hidden_layers": 24,
    "num_attention_heads": 8, "vocab_size": 2006, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
INTERVAL, DEVICES = 10.0, 2
SAME: dict[str, Any] = {"batch_size": 2, "seq_len": 16}


def counted(config: Path, method: str, strategy: str, folder: Path) -> dict[str, Any]:
    """Of the last of four steps, from result.json."""
    output = folder / f"{method}-{strategy}"
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(DEVICES), "-m", "--", "switchlora"]
    words += ["pretrain", "--model", str(config), "--data", "stdlib", "--method", method, "--parallel", strategy]
    words += ["--interval", str(INTERVAL), "--decay-ratio", "none", "--steps", "4", "--eval-tokens", "64"]
    words += ["--batch-size", "2", "--seq-len", "16", "--device", "cpu", "--threads", "1", "--output", str(output)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((output / "result.json").read_text("utf-8"))
    return {key: found[key] for key in ("traffic_bytes", "trainable_parameters", "command", "versions", "hardware")}


def main() -> None:
    """Count all four."""
    runs = []
    with tempfile.TemporaryDirectory() as name:
        config = Path(name) / "config.json"
        config.write_text(json.dumps(SHAPE))
        for method in ("full", "switchlora"):
            for strategy in ("ddp", "fsdp"):
                asked = PlanOptions(
                    model=str(config), method=method, gpus=DEVICES, parallel=strategy, dtype="fp32",
                    pretrain={"interval": INTERVAL}, **SAME,
                )  # fmt: skip
                run = {"method": method, "strategy": strategy, "planned_bytes": plan_of(asked).traffic_bytes}
                runs.append(run | counted(config, method, strategy, Path(name)))
                print(method, strategy, runs[-1]["traffic_bytes"], runs[-1]["planned_bytes"], flush=True)
    OUTPUT.write_text(json.dumps({"shape": SHAPE, "interval": INTERVAL, "runs": runs}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
