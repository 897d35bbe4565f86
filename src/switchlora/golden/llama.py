"""Replay of golden_llama.npz: a small LLaMA, fp32, with gradient clipping."""

from typing import Any

import torch
from torch import Tensor, nn

from switchlora.conversion import to_dense
from switchlora.golden.replay import Deviations, Replay

LOSS_TOLERANCE, STATE_TOLERANCE = 1e-5, 1e-4  # the fp32 noise that the format's page states, with a margin


def replay_llama(data: Any, meta: dict[str, Any]) -> Deviations:
    """The recorded run, then the same start without switching."""
    replay = _start(data, meta, switching=True)
    _compare_snapshot(replay, 0)
    for t in range(meta["steps"]):
        loss = _loss(replay.model, data["tokens"][t])
        replay.compare("loss", loss, data["loss"][t], LOSS_TOLERANCE)
        norm = replay.step(loss)
        replay.compare("grad_norm", norm, data["grad_norm"][t])
        replay.compare_switches(t)
        if t + 1 in meta["snapshots"]:
            _compare_snapshot(replay, t + 1)
    _compare_moments(replay)
    to_dense(replay.model)
    for name in replay.layers:
        replay.compare("final_merged", replay.model.get_submodule(name).weight, data[f"final_merged/{name}"])
    with torch.no_grad():
        for t, recorded in enumerate(data["final_eval_loss"]):
            replay.compare("final_eval_loss", _loss(replay.model, data["tokens"][t]), recorded, LOSS_TOLERANCE)
    _replay_without_switching(replay, data, meta)
    return replay.deviations


def _replay_without_switching(replay: Replay, data: Any, meta: dict[str, Any]) -> None:
    if "loss_lora_only" not in data:
        return
    plain = _start(data, meta, switching=False)
    for t, recorded in enumerate(data["loss_lora_only"]):
        loss = _loss(plain.model, data["tokens"][t])
        replay.compare("loss_lora_only", loss, recorded, LOSS_TOLERANCE)
        plain.step(loss)


def _start(data: Any, meta: dict[str, Any], *, switching: bool) -> Replay:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**meta["config"]))
    model.train()
    names = [name for name, _ in model.named_parameters()]
    model.load_state_dict({name: torch.from_numpy(data[f"orig/{name}"]) for name in names})
    replay = Replay(model, data, meta, meta["lora_layers"], STATE_TOLERANCE, switching=switching)
    for name in replay.layers:
        replay.start(name, *(data[f"state0/{name}.{key}"] for key in ("weight", "lora_A", "lora_B")))
        replay.compare("init/W_orig", replay.layers[name].weight, data[f"orig/{name}.weight"])
        for side in ("A", "B") if switching else ():
            init = (data[f"init_sel/{name}/{key}_{side}"] for key in ("sel", "cursor"))
            replay.start_side(name, side, data[f"state0/{name}.candidates_{side}"], *init)
    return replay


def _loss(model: nn.Module, tokens: Any) -> Tensor:
    ids = torch.from_numpy(tokens)
    loss: Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def _compare_snapshot(replay: Replay, k: int) -> None:
    """Every tensor that the file holds of the state after k steps."""
    own = dict(replay.model.named_parameters())
    for name in replay.layers:
        own[f"{name}.weight"] = nn.Parameter(replay.base(name), requires_grad=False)
        for side in ("A", "B"):
            own[f"{name}.candidates_{side}"] = nn.Parameter(replay.state(name, side)["candidates"])
    prefix = f"state{k}/"
    for key in replay.data:
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            kind = name.rpartition(".")[2] if name.rpartition(".")[0] in replay.layers else "other parameters"
            replay.compare(f"state/{kind}", own[name], replay.data[key])


def _compare_moments(replay: Replay) -> None:
    for name, parameter in replay.model.named_parameters():
        for ours, theirs in (("exp_avg", "m"), ("exp_avg_sq", "v"), ("step", "step")):
            if f"final_opt/{name}/{theirs}" in replay.data:
                recorded = replay.data[f"final_opt/{name}/{theirs}"]
                replay.compare(f"final_opt/{theirs}", replay.optimizer.state[parameter][ours], recorded)
