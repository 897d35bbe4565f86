"""Replay of golden_linear_*.npz: a chain of linear layers, float64."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from switchlora.conversion import to_dense
from switchlora.golden.format import Shape, check_arrays, check_range, switch_shapes
from switchlora.golden.replay import Deviations, Replay, recorded_config


def replay_linear(data: Any, meta: dict[str, Any]) -> Deviations:
    """A chain of linear layers with tanh between them, mean squared error; see the format's page."""
    layers, dims = meta["layers"], meta["dims"]
    config = recorded_config(meta, layers, switching=meta["switching"])
    _check(data, meta)
    model = nn.Module()
    for name, n, m in zip(layers, dims[:-1], dims[1:], strict=True):
        model.add_module(name, nn.Linear(n, m, dtype=getattr(torch, meta["dtype"])))
    tolerance = 1e-10 if meta["dtype"] == "float64" and meta["step_counter_dtype"] == "float64" else 1e-5
    replay = Replay(model, data, meta, config, tolerance)
    for name in layers:
        init = {key: data[f"init/{name}/{key}"] for key in ("W", "A", "B", "bias")}
        replay.start(name, init["W"], init["A"], init["B"])
        with torch.no_grad():
            replay.layers[name].bias.copy_(torch.from_numpy(init["bias"]))
        replay.compare("init/W_orig", replay.layers[name].weight, data[f"init/{name}/W_orig"])
        for side in ("A", "B") if meta["switching"] else ():
            replay.start_side(name, side, *(data[f"init/{name}/{key}_{side}"] for key in ("cand", "sel", "cursor")))
    _compare_linear_state(replay, 0)
    for t in range(meta["steps"]):
        loss = _linear_loss(replay, t)
        replay.compare("loss", loss, data["loss"][t])
        replay.step(loss)
        if meta["switching"]:
            replay.compare_switches(t)
        _compare_linear_state(replay, t + 1)
    to_dense(model)
    replay.layers = {name: model.get_submodule(name) for name in layers}
    for name, layer in replay.layers.items():
        replay.compare("final/W_merged", layer.weight, data[f"final/{name}/W_merged"])
        replay.compare("final/bias", layer.bias, data[f"final/{name}/bias"])
    with torch.no_grad():
        losses = [float(_linear_loss(replay, t)) for t in range(len(data["X"]))]
    replay.compare("final/eval_loss", np.mean(losses), data["final/eval_loss"])
    return replay.deviations


def _check(data: Any, meta: dict[str, Any]) -> None:
    """The shape of every array, as the format's page has it."""
    steps, r, dims = meta["steps"], meta["rank"], meta["dims"]
    needed: dict[str, Shape] = {"X": (steps, None, dims[0]), "loss": (steps,), "final/eval_loss": ()}
    optional: dict[str, Shape] = {}
    for name, n, m in zip(meta["layers"], dims[:-1], dims[1:], strict=True):
        C = min(m, n)
        state: dict[str, tuple[int, ...]] = {"W": (m, n), "A": (r, n), "B": (m, r), "bias": (m,)}
        counters: dict[str, tuple[int, ...]] = {"A": (r, 1), "B": (1, r), "bias": ()}
        needed |= {f"init/{name}/W_orig": (m, n), f"final/{name}/W_merged": (m, n), f"final/{name}/bias": (m,)}
        for key, counter in counters.items():
            needed |= {f"opt/{name}/{key}/{moment}": (steps + 1, *state[key]) for moment in ("m", "v")}
            needed[f"opt/{name}/{key}/step"] = (steps + 1, *counter)
            optional[f"grad/{name}/{key}"] = (steps, *state[key])
        if meta["switching"]:
            state |= {"cand_A": (C, n), "cand_B": (C, m)}
            needed |= {f"init/{name}/sel_{side}": (r,) for side in ("A", "B")}
            needed |= {f"init/{name}/cursor_{side}": () for side in ("A", "B")}
            switches = switch_shapes(name, steps, r)
            needed, optional = needed | switches[0], optional | switches[1]
        needed |= {f"init/{name}/{key}": shape for key, shape in state.items()}
        needed |= {f"traj/{name}/{key}": (steps + 1, *shape) for key, shape in state.items()}
    check_arrays(data, needed, optional)
    check_arrays(data, {"Y": (*data["X"].shape[:2], dims[-1])}, {})
    for name, n, m in zip(meta["layers"], dims[:-1], dims[1:], strict=True) if meta["switching"] else ():
        check_range(data, (f"init/{name}/sel_{side}" for side in ("A", "B")), min(m, n))
        check_range(data, (f"init/{name}/cursor_{side}" for side in ("A", "B")), r)


def _linear_loss(replay: Replay, t: int) -> Tensor:
    *hidden, last = replay.layers.values()
    x, y = (torch.from_numpy(replay.data[key][t]).to(last.weight) for key in ("X", "Y"))
    for layer in hidden:
        x = torch.tanh(layer(x))
    loss: Tensor = (last(x) - y).square().mean()
    return loss


def _compare_linear_state(replay: Replay, k: int) -> None:
    """State after k steps."""
    for name, layer in replay.layers.items():
        ours = {"W": replay.base(name), "A": layer.lora_A, "B": layer.lora_B, "bias": layer.bias}
        for side in ("A", "B") if replay.switching else ():
            ours[f"cand_{side}"] = replay.state(name, side)["candidates"]
        for key, value in ours.items():
            replay.compare(f"traj/{key}", value, replay.data[f"traj/{name}/{key}"][k])
        for key, parameter in (("A", layer.lora_A), ("B", layer.lora_B), ("bias", layer.bias)):
            for ours_name, theirs in (("exp_avg", "m"), ("exp_avg_sq", "v"), ("step", "step")):
                recorded = replay.data[f"opt/{name}/{key}/{theirs}"][k]
                replay.compare(f"opt/{key}/{theirs}", replay.optimizer.state[parameter][ours_name], recorded)
