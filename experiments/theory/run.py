"""How near SwitchLoRA's updates of W point to those of full-rank AdamW and Muon, made from the same gradients.

    python experiments/theory/run.py [--output FOLDER] [--ranks 8 32] [--intervals 40 inf] [--init lora] [--neither]

Each run is a `switchlora pretrain` in this process, with hooks that form G = dL/dW of every layer and keep the
moments that AdamW and Muon would have. For every window of 40 steps it is noted, averaged over layers: the mean
cosine of single steps, and that of the sums over the window (weighted by the schedule's factor, as the run's own
steps are). Learning rates of theirs do not matter: a cosine has none.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from switchlora.layer import SwitchLoraLinear
from switchlora.machine import description, devices
from switchlora.muon import muon_
from switchlora.rules import AdamW
from switchlora.training.folder import RunFolder
from switchlora.training.loop import train_step
from switchlora.training.options import PretrainOptions
from switchlora.training.parallel import Processes
from switchlora.training.resolve import resolve
from switchlora.training.run import Run, check_model, checkpoints_of, load_data

WINDOW = 40
ADAMW = AdamW((0.9, 0.999), 1e-8)
SHARED = {
    "model": "experiments/model", "data": ("../shared/data/enwiki-train.jsonl.xz",), "method": "switchlora",
    "batch_size": 16, "seq_len": 128, "lr": 0.02, "other_lr": 0.02, "device": "cpu",
    "cpu_products": "onednn",
}  # fmt: skip


class Shadow:
    """One layer's full gradient, the moments that full-rank rules would have, and sums over a window."""

    def __init__(self, layer: SwitchLoraLinear) -> None:
        self.layer = layer
        self.G = torch.zeros_like(layer.weight)
        self.moments = [torch.zeros_like(self.G) for _ in range(3)]
        self.sums = {name: torch.zeros_like(self.G) for name in ("ours", "adamw", "muon")}
        self.before = self.G
        layer.register_forward_hook(self._watch)

    def _watch(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        X = inputs[0].detach().flatten(0, -2)

        def add(dY: Tensor) -> None:
            self.G.addmm_(dY.flatten(0, -2).T, X)

        output.register_hook(add)

    def directions(self, step: int) -> dict[str, Tensor]:
        """Where AdamW and Muon would go from here (downhill), in step number `step`, from 1."""
        size, eps = (float(one) for one in ADAMW.coefficients(torch.tensor(step).numpy(), 1.0))
        adamw = ADAMW.change(self.G, self.moments[:2], size, eps)
        return {"adamw": adamw, "muon": -muon_(self.G, self.moments[2], 0.95)}


def cosine(a: Tensor, b: Tensor) -> float:
    """Of two matrices."""
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-30))


def measured(options: PretrainOptions) -> list[dict[str, Any]]:
    """The windows of one run."""
    options = check_model(resolve(options))
    device = devices.prepare(options.device, options.threads, options.cpu_products)
    ranks, folder = Processes(device=device), RunFolder(Path("runs/theory"), options)  # never written to
    run = Run(options, load_data(options, print), device, ranks, checkpoints_of(folder, ranks))
    shadows = [Shadow(module) for module in run.model.modules() if isinstance(module, SwitchLoraLinear)]
    singles: list[tuple[float, float]] = []

    def before(*_: Any) -> None:
        norm = torch.stack([shadow.G.norm() for shadow in shadows]).norm()
        for shadow in shadows:
            shadow.G.mul_((1.0 / norm).clamp(max=1.0))  # clipped as the run's own gradients are, by their common norm
            shadow.before = shadow.layer.weight.detach().clone()

    def after(*_: Any) -> None:
        factor = run.optimizer.param_groups[0]["lr"] / options.lr
        for shadow in shadows:
            moved = shadow.layer.weight.detach() - shadow.before
            theirs = shadow.directions(run.step + 1)
            singles.append((cosine(moved, theirs["adamw"]), cosine(moved, theirs["muon"])))
            shadow.sums["ours"] += moved
            for name, direction in theirs.items():
                shadow.sums[name].add_(direction, alpha=factor)
            shadow.G.zero_()

    run.optimizer.register_step_pre_hook(before)
    run.optimizer.register_step_post_hook(after)
    windows = []
    while run.step < (options.steps or 0):
        row = train_step(run, folder)
        if run.step % WINDOW == 0:
            whole = [[cosine(s.sums["ours"], s.sums[name]) for s in shadows] for name in ("adamw", "muon")]
            one = [sum(pair[i] for pair in singles) / len(singles) for i in range(2)]
            windows.append(
                {
                    "step": run.step, "loss": row["loss"], "adamw_1": one[0], "muon_1": one[1],
                    "adamw_40": sum(whole[0]) / len(shadows), "muon_40": sum(whole[1]) / len(shadows),
                }
            )  # fmt: skip
            print(windows[-1], flush=True)
            singles.clear()
            for shadow in shadows:
                for total in shadow.sums.values():
                    total.zero_()
    run.corpus.close()
    return windows


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("experiments/theory/results"))
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--intervals", nargs="+", default=["40", "inf"])
    parser.add_argument("--init", choices=("switchlora", "lora"), default="switchlora", help="how A and B begin")
    parser.add_argument("--decay-ratio", default="none")
    parser.add_argument("--neither", action="store_true", help="no reset and no rest at a switch")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for r in arguments.ranks:
        for interval in arguments.intervals:
            name = f"r{r}-interval{interval}-decay{arguments.decay_ratio}-seed{arguments.seed}"
            name += "-from-lora" * (arguments.init == "lora") + "-neither" * arguments.neither
            path = arguments.output / f"{name}.json"
            if path.exists():
                continue
            own = {"r": r, "interval": interval, "decay_ratio": arguments.decay_ratio, "steps": arguments.steps}
            own["init_lora_weights"] = arguments.init
            if arguments.neither:
                own |= {"reset": False, "freeze_steps": 0}
            options = PretrainOptions.merge(SHARED, own, {"seed": arguments.seed, "threads": arguments.threads})
            windows = measured(options)
            record = {
                "script": " ".join(["python", *sys.argv]),
                "machine": description.describe_machine(torch.device("cpu")),
                "config": options.to_dict(),
                "window_steps": WINDOW,
                "windows": windows,
            }
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
