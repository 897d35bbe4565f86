"""Golden files of any size: a small independent run of the official rules, in numpy.

Written from tests/data/golden/README.md (format and "Order of events"). The switch itself is plain_rules.py; here are
the network, its gradients by hand, the frozen base W and AdamW. `B.vectors[j]` is the j-th column of B.
"""

import copy
import dataclasses
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from tests.numerics.plain_rules import PlainLayer, plain_switch


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One run. `descend`: after how many steps the frequency has fallen by 0.3; None keeps it constant."""

    r: int
    interval: float
    N: int
    dims: tuple[int, ...]
    order: str = "cyclic"
    descend: int | None = None
    alpha: float = 1.0
    lr: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    steps: int = 30
    seed: int = 0

    def meta(self) -> dict[str, Any]:
        return {
            "dims": self.dims, "rank": self.r, "lora_alpha": self.alpha, "steps": self.steps, "lr": self.lr,
            "betas": self.betas, "eps": self.eps, "weight_decay": 0.0, "clip_grad_norm": None, "dtype": "float64",
            "base_interval": self.interval, "fixed_interval": self.descend is None, "descend_type": "exponential",
            "expect_switch_descend_step": self.descend or 1, "freeze_steps": self.N, "switching": True,
            "continuous": self.order == "cyclic", "step_counter_dtype": "float64",
            "layers": [f"fc{i}" for i in range(1, len(self.dims))],
        }  # fmt: skip


class Layer:
    """A linear layer with the paper's frozen base W, the two factors, and the state of its switches and AdamW."""

    def __init__(self, recipe: Recipe, n: int, m: int, rng: np.random.Generator) -> None:
        r, self.recipe, self.scaling = recipe.r, recipe, recipe.alpha / recipe.r
        bound = {"A": 3**0.25 * (m**0.5 * r / n**1.5) ** 0.25, "B": 3**0.25 * (r / (m * n) ** 0.5) ** 0.25}
        size = {"A": n, "B": m}
        self.plain = PlainLayer.at_start(r, min(m, n), lambda x, _: rng.uniform(-bound[x], bound[x], size[x]))
        self.W_orig = rng.uniform(-1, 1, (m, n)) / n**0.5
        self.W = self.W_orig - self.update()
        self.bias = rng.uniform(-1, 1, m) / n**0.5
        self.bias_step, self.bias_moments = 0, np.zeros((2, m))
        self.plain.A.moments, self.plain.B.moments = [np.zeros((2, n))] * r, [np.zeros((2, m))] * r

    @property
    def A(self) -> np.ndarray:
        return np.stack(self.plain.A.vectors)

    @property
    def B(self) -> np.ndarray:
        return np.stack(self.plain.B.vectors, axis=1)

    def update(self) -> np.ndarray:
        return self.scaling * self.B @ self.A

    def switch(self, t: int, rng: np.random.Generator) -> dict[str, Any]:
        """Events 3a to 3d of one step; returns what is recorded of them."""
        recipe, plain, s = self.recipe, self.plain, self.scaling
        interval = recipe.interval if recipe.descend is None else recipe.interval / 0.3 ** ((t + 1) / recipe.descend)
        before, A, B, effective = copy.deepcopy(plain), self.A, self.B, self.W + self.update()
        chosen = None if recipe.order == "cyclic" else IdleCandidates(plain, rng)
        u = rng.random()
        drawn, k = plain_switch(plain, u=u, interval=interval, N=recipe.N, chosen=chosen)
        record: dict[str, Any] = {"u": u, "interval": interval, "drawn": drawn, "num": k}
        for letter, old, new in (("A", before.A, plain.A), ("B", before.B, plain.B)):
            slots = [(old.cursor + j) % recipe.r for j in range(k)]
            if letter == "A":
                self.W = self.W + s * B[:, slots] @ (A[slots] - self.A[slots])
                jump = self.W + s * B @ self.A - effective
            else:
                self.W = self.W + s * (B[:, slots] - self.B[:, slots]) @ self.A[slots]
                jump = self.W + self.update() - effective
            rows = np.full((recipe.r, 2), -1)
            rows[:k] = np.array([(slot, new.slots[slot]) for slot in slots]).reshape(k, 2)
            record |= {f"{letter}_map": rows, f"fn_jump_{letter}": np.abs(jump).max(), f"overlap_{letter}": 0}
        return record

    def train(self, gradient: dict[str, np.ndarray]) -> None:
        """Event 3e and the optimizer's step."""
        for side, gradients in ((self.plain.A, gradient["A"]), (self.plain.B, gradient["B"].T)):
            for i, g in enumerate(gradients):
                side.step[i] += 1
                move, side.moments[i] = adam(self.recipe, g * (side.frozen[i] == 0), side.moments[i], side.step[i])
                side.vectors[i] = side.vectors[i] - move
                side.frozen[i] = max(side.frozen[i] - 1, 0)
        self.bias_step += 1
        move, self.bias_moments = adam(self.recipe, gradient["bias"], self.bias_moments, self.bias_step)
        self.bias = self.bias - move

    def state(self) -> dict[str, np.ndarray]:
        pools = {f"cand_{x}": np.stack(side.candidates) for x, side in (("A", self.plain.A), ("B", self.plain.B))}
        return {"W": self.W, "A": self.A, "B": self.B, "bias": self.bias, **pools}

    def counters(self) -> dict[str, Any]:
        A, B = self.plain.A, self.plain.B
        return {"sel_A": A.slots, "sel_B": B.slots, "cursor_A": A.cursor, "cursor_B": B.cursor,
                "fixed_A": A.frozen, "fixed_B": B.frozen}  # fmt: skip

    def optimizer(self) -> dict[str, Any]:
        A, B = self.plain.A, self.plain.B
        (mA, vA), (mB, vB), (m, v) = np.stack(A.moments, axis=1), np.stack(B.moments, axis=2), self.bias_moments
        return {"A/m": mA, "A/v": vA, "A/step": np.array(A.step)[:, None], "B/m": mB, "B/v": vB,
                "B/step": np.array(B.step)[None], "bias/m": m, "bias/v": v, "bias/step": self.bias_step}  # fmt: skip


class IdleCandidates(dict[str, list[int]]):
    """Random order: candidates drawn when they are asked for, as by then the cursor tells how many are needed."""

    def __init__(self, layer: PlainLayer, rng: np.random.Generator) -> None:
        super().__init__()
        self.layer, self.rng, self.cursor = layer, rng, layer.A.cursor

    def __missing__(self, letter: str) -> list[int]:
        side = self.layer.A if letter == "A" else self.layer.B
        idle = sorted({*range(self.layer.c)} - {*side.slots})
        num = (self.layer.A.cursor - self.cursor) % self.layer.r
        return [int(i) for i in self.rng.choice(idle, num, replace=False)]


def adam(recipe: Recipe, g: np.ndarray, moments: Any, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The move of one vector, and its new moments (2, length)."""
    betas = np.array(recipe.betas)[:, None]
    moments = betas * moments + (1 - betas) * np.stack([g, g * g])
    m, v = moments / (1 - betas**step)
    return recipe.lr * m / (np.sqrt(v) + recipe.eps), moments


def forward(layers: list[Layer], x: np.ndarray) -> list[np.ndarray]:
    """The input of every layer, and the output."""
    values = [x]
    for layer in layers:
        z = values[-1] @ (layer.W + layer.update()).T + layer.bias
        values.append(z if layer is layers[-1] else np.tanh(z))
    return values


def backward(layers: list[Layer], values: list[np.ndarray], y: np.ndarray) -> list[dict[str, np.ndarray]]:
    """The gradients of every layer; the loss is the mean square."""
    gradients, g = [], 2 * (values[-1] - y) / y.size
    for layer, x in zip(reversed(layers), reversed(values[:-1]), strict=True):
        dW, s = g.T @ x, layer.scaling
        gradients.append({"A": s * layer.B.T @ dW, "B": s * dW @ layer.A.T, "bias": g.sum(0)})
        g = g @ (layer.W + layer.update()) * (1 - x**2)  # x is a tanh, but for the input, whose g nobody asks for
    return gradients[::-1]


def record(recipe: Recipe, path: Path) -> dict[str, list[int]]:
    """Run, write the golden file, and return the number of vectors switched at each step by each layer."""
    rng = np.random.default_rng(recipe.seed)
    X, Y = (rng.standard_normal((4, 8, d))[np.arange(recipe.steps) % 4] for d in (recipe.dims[0], recipe.dims[-1]))
    layers = [Layer(recipe, n, m, rng) for n, m in itertools.pairwise(recipe.dims)]
    named = {f"fc{i}": layer for i, layer in enumerate(layers, 1)}
    data: dict[str, Any] = {"X": X, "Y": Y, "meta_json": json.dumps(recipe.meta())}
    series: dict[str, list[Any]] = defaultdict(list)

    def note(folder: str, values: dict[str, Any]) -> None:
        for key, value in values.items():
            series[f"{folder}/{key}"].append(np.array(value))  # a copy

    def note_state() -> None:
        for name, layer in named.items():
            note(f"traj/{name}", layer.state())
            note(f"opt/{name}", layer.optimizer())

    for name, layer in named.items():
        init = {"W_orig": layer.W_orig, **layer.state(), **layer.counters()}
        data |= {f"init/{name}/{key}": np.array(value) for key, value in init.items()}
    note_state()
    for t in range(recipe.steps):
        values = forward(layers, X[t])
        series["loss"].append(np.mean((values[-1] - Y[t]) ** 2))
        for (name, layer), gradient in zip(named.items(), backward(layers, values, Y[t]), strict=True):
            note(f"grad/{name}", gradient)
            note(f"sw/{name}", layer.switch(t, rng))
            layer.train(gradient)
            note(f"sw/{name}", layer.counters())
        note_state()
    for name, layer in named.items():
        data |= {f"final/{name}/W_merged": layer.W + layer.update(), f"final/{name}/bias": layer.bias}
    data["final/eval_loss"] = np.mean([np.mean((forward(layers, x)[-1] - y) ** 2) for x, y in zip(X, Y, strict=True)])
    np.savez(path, **data, **{key: np.stack(value) for key, value in series.items()})
    return {name: [int(num) for num in series[f"sw/{name}/num"]] for name in named}
