"""Replay of golden_linear_*.npz: a chain of linear layers, float64."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from switchlora.conversion import to_dense
from switchlora.golden.replay import Deviations, Replay


def replay_linear(data: Any, meta: dict[str, Any]) -> Deviations:
    """A chain of linear layers with tanh between them, mean squared error; see the format's page."""
    layers, dims = meta["layers"], meta["dims"]
    dtype = getattr(torch, meta["dtype"])
    model = nn.Module()
    for name, n, m in zip(layers, dims[:-1], dims[1:], strict=True):
        model.add_module(name, nn.Linear(n, m, dtype=dtype))
    tolerance = 1e-10 if meta["dtype"] == "float64" and meta["step_counter_dtype"] == "float64" else 1e-5
    replay = Replay(model, data, meta, layers, tolerance, switching=meta["switching"])
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


def _linear_loss(replay: Replay, t: int) -> Tensor:
    x, y = (torch.from_numpy(replay.data[key][t]) for key in ("X", "Y"))
    *hidden, last = replay.layers.values()
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
