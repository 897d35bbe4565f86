"""What layers that read one input save by summing in their products what they pass back to it (`input_chain`).

    python -m benchmarks.input_chains [--threads 2] [--rounds 20]

For q, k and v (three layers) and gate and up (two) of the bench shape: the backward pass of SwitchLoRA layers in a
chain and apart, and of full-rank ones, whose gradients autograd adds up as it does apart; in float32, and under
autocast to bfloat16, where forward is timed too, for that is where the input is cast. Interleaved in shuffled
order; medians of ratios paired within a round. And the bytes that autograd keeps between forward and backward,
parameters left out.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from switchlora import layer
from switchlora.bench.statistics import paired_ratios, summarize
from switchlora.layer import SwitchLoraLinear
from switchlora.machine.description import describe_machine
from switchlora.machine.devices import prepare

OUTPUT = Path(__file__).with_suffix(".json")
SHAPES = {"q, k, v": (3, 512, 512), "gate, up": (2, 1376, 512)}  # layers, m, n
ARMS = ("full rank", "apart", "chained")


class Arm:
    """Layers over one input, which is no leaf."""

    def __init__(self, name: str, num_layers: int, m: int, n: int, r: int, T: int) -> None:
        self.name, self.can_chain = name, layer.can_chain
        makers = {"full rank": lambda i: nn.Linear(n, m, bias=False)}
        make = makers.get(name, lambda i: SwitchLoraLinear(n, m, False, r=r, name=str(i)))
        self.layers = [make(i) for i in range(num_layers)]
        self.trained = [p for one in self.layers for p in one.parameters() if p.requires_grad]
        self.x = torch.randn(T, n, requires_grad=True)
        self.grads = [torch.randn(T, m) for _ in range(num_layers)]

    def forward(self, autocast: bool) -> tuple[Tensor, list[Tensor]]:
        """The input, which is no leaf, and the outputs."""
        h = self.x * 1.0
        layer.can_chain = self.can_chain if self.name == "chained" else lambda x: False
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                return h, [one(h) for one in self.layers]
        finally:
            layer.can_chain = self.can_chain

    def seconds(self, autocast: bool) -> float:
        """Of one backward pass; under autocast of forward, too."""
        grads = [grad.to(torch.bfloat16 if autocast else torch.float32) for grad in self.grads]  # as consumers would
        start = time.perf_counter()
        h, outputs = self.forward(autocast)
        start = start if autocast else time.perf_counter()
        torch.autograd.grad(outputs, [h, *self.trained], grads)
        return time.perf_counter() - start

    def kept_bytes(self, autocast: bool) -> int:
        """What autograd holds between forward and backward, beside parameters and the input itself."""
        held: dict[int, int] = {}
        parameters = {p.untyped_storage().data_ptr() for one in self.layers for p in one.parameters()}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            kept = self.forward(autocast)
        del kept
        return sum(held.values())


def measure(num_layers: int, m: int, n: int, r: int, T: int, autocast: bool, rounds: int) -> dict[str, Any]:
    """One row."""
    order, arms = random.Random(0), [Arm(name, num_layers, m, n, r, T) for name in ARMS]
    seconds: dict[str, list[float]] = {name: [] for name in ARMS}
    for i in range(rounds + 2):
        for arm in order.sample(arms, len(arms)):
            took = arm.seconds(autocast)
            if i > 1:  # the first two rounds warm up
                seconds[arm.name].append(took)
    ratios = {
        f"{one} to {other}": vars(summarize(paired_ratios(seconds[one], seconds[other])))
        for one, other in (("chained", "apart"), ("apart", "full rank"), ("chained", "full rank"))
    }
    kept = {arm.name: arm.kept_bytes(autocast) for arm in arms}
    return {"ratios": ratios, "kept_bytes": kept, "seconds": seconds}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    prepare("cpu", arguments.threads)
    rows = []
    for autocast in (False, True):
        for name, (num_layers, m, n) in SHAPES.items():
            for r in (64, 128):
                for T in (1024, 4096):
                    row = {"layers": name, "m": m, "n": n, "r": r, "tokens": T, "autocast": autocast}
                    row |= measure(num_layers, m, n, r, T, autocast, arguments.rounds)
                    rows.append(row)
                    ratios = ", ".join(f"{what} {one['median']:.3f}" for what, one in row["ratios"].items())
                    took = {arm: f"{1e3 * statistics.median(times):.1f} ms" for arm, times in row["seconds"].items()}
                    print(f"{name}, r = {r}, {T} tokens, autocast {autocast}: {ratios}; {took}; {row['kept_bytes']}")
    result = {
        "command": f"python -m benchmarks.input_chains --threads {arguments.threads} --rounds {arguments.rounds}",
        "machine": describe_machine(torch.device("cpu")),
        "rows": rows,
    }
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
