"""How fast the matrix products of one layer's backward pass run on this CPU, alone and together.

    python -m benchmarks.products [--threads 2] [--rounds 20] [--cpu-products onednn] [--output FILE.json]

For the layers of the bench shape, fp32, at 1,024 and 4,096 tokens: each product in 10^9 FLOPs per second, and the
whole backward pass of a SwitchLoRA layer (dX and both factors' gradients) as a ratio to that of a full-rank one (dX
and dW), in one block of tokens and in blocks of `token_blocks.BLOCK_TOKENS`. All of a row runs in shuffled order,
on operands that are not in the cache, round after round; medians over the rounds, ratios paired within a round.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from switchlora import effective_linear, token_blocks
from switchlora.bench.statistics import paired_ratios, summarize
from switchlora.machine import cpu_products
from switchlora.machine.description import describe_machine
from switchlora.machine.devices import prepare

OUTPUT = Path(__file__).with_suffix(".json")
SHAPES = {"attention": (512, 512), "up, gate": (1376, 512), "down": (512, 1376)}  # m, n
COPIES = 8  # of the operands, taken in turn: more than a cache holds


def products(m: int, n: int, r: int, T: int) -> dict[str, tuple[int, Callable[[], Any]]]:
    """FLOPs and a call, by name; fresh operands."""
    dY, X, W, A, B = (torch.randn(*shape) for shape in ((T, m), (T, n), (m, n), (r, n), (m, r)))
    U, V, num_blocks = X @ A.T, dY @ B, token_blocks.num_token_blocks(dY)
    in_blocks = {"blocks": (0, lambda: token_blocks.backward_in_blocks(dY, X, W, A, B, 1.0, num_blocks))}
    return {
        "dY W": (2 * m * n * T, lambda: dY @ W),
        "dY' X": (2 * m * n * T, lambda: dY.T @ X),
        "X A'": (2 * n * r * T, lambda: X @ A.T),
        "dY B": (2 * m * r * T, lambda: dY @ B),
        "dY' U": (2 * m * r * T, lambda: dY.T @ U),
        "V' X": (2 * n * r * T, lambda: V.T @ X),
        "V' X in shares": (2 * n * r * T, lambda: token_blocks.product_over_tokens(V, X, 1.0)),
        "full rank": (4 * m * n * T, lambda: (dY @ W, dY.T @ X)),
        "one block": (0, lambda: (dY @ W, effective_linear.factor_gradients_thin(dY, X, A, B, 1.0))),
        **(in_blocks if num_blocks > 1 else {}),
    }


def measure(m: int, n: int, r: int, T: int, rounds: int, order: random.Random) -> dict[str, Any]:
    """One row."""
    copies = [products(m, n, r, T) for _ in range(COPIES)]
    seconds: dict[str, list[float]] = {name: [] for name in copies[0]}
    for i in range(rounds + 1):
        for name in order.sample(list(seconds), len(seconds)):
            turn = order.sample(copies, 3)
            start = time.perf_counter()
            for one in turn:
                one[name][1]()
            if i:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / len(turn))
    flops = {name: count for name, (count, _) in copies[0].items()}
    speeds = {name: flops[name] / statistics.median(took) / 1e9 for name, took in seconds.items() if flops[name]}
    ratios = {
        name: vars(summarize(paired_ratios(took, seconds["full rank"])))
        for name, took in seconds.items()
        if not flops[name]
    }
    return {"gflops_per_second": speeds, "ratio_to_full_rank": ratios, "seconds": seconds}


def rows(rounds: int) -> Iterator[dict[str, Any]]:
    """All of them, printed as they come."""
    order = random.Random(0)
    for T in (1024, 4096):
        for name, (m, n) in SHAPES.items():
            for r in (64, 128):
                row = {"layer": name, "m": m, "n": n, "r": r, "tokens": T, **measure(m, n, r, T, rounds, order)}
                speeds = ", ".join(f"{what} {speed:.0f}" for what, speed in row["gflops_per_second"].items())
                ratios = ", ".join(f"{what} {one['median']:.3f}" for what, one in row["ratio_to_full_rank"].items())
                print(f"{name}, r = {r}, {T} tokens: {ratios} of full rank; GFLOP/s: {speeds}", flush=True)
                yield row


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--cpu-products", choices=cpu_products.PRODUCTS, default=cpu_products.TORCH)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    prepare("cpu", arguments.threads, arguments.cpu_products)
    settings = f"--threads {arguments.threads} --rounds {arguments.rounds} --cpu-products {arguments.cpu_products}"
    result = {
        "command": f"python -m benchmarks.products {settings}",
        "machine": describe_machine(torch.device("cpu")),
        "block_tokens": token_blocks.BLOCK_TOKENS,
        "rows": list(rows(arguments.rounds)),
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
