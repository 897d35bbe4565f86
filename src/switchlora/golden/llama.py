"""Replay of golden_llama.npz: a small LLaMA, fp32, with gradient clipping."""

from typing import Any

import torch
from torch import Tensor, nn

from switchlora.conversion import to_dense
from switchlora.errors import UserError
from switchlora.golden.format import Shape, check_arrays, check_range, first_line, switch_shapes
from switchlora.golden.replay import Deviations, Replay, recorded_config

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
    config = recorded_config(meta, meta["lora_layers"], switching=switching)
    model = _model(meta)
    _check(data, meta, model)
    model.load_state_dict({name: torch.from_numpy(data[f"orig/{name}"]) for name, _ in model.named_parameters()})
    replay = Replay(model, data, meta, config, STATE_TOLERANCE)
    for name in replay.layers:
        replay.start(name, *(data[f"state0/{name}.{key}"] for key in ("weight", "lora_A", "lora_B")))
        replay.compare("init/W_orig", replay.layers[name].weight, data[f"orig/{name}.weight"])
        for side in ("A", "B") if switching else ():
            init = (data[f"init_sel/{name}/{key}_{side}"] for key in ("sel", "cursor"))
            replay.start_side(name, side, data[f"state0/{name}.candidates_{side}"], *init)
    return replay


def _model(meta: dict[str, Any]) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    try:
        model: nn.Module = LlamaForCausalLM(LlamaConfig(**meta["config"]))
    except Exception as error:  # whatever transformers finds wrong with a configuration that is not ours
        raise UserError(f"config in meta_json: transformers refuses it ({first_line(error)})") from None
    modules = dict(model.named_modules())
    for name in meta["lora_layers"]:
        if not isinstance(modules.get(name), nn.Linear):
            raise UserError(f"lora_layers in meta_json: {name} is no linear layer of this model; record it anew")
    return model.train()


def _check(data: Any, meta: dict[str, Any], model: nn.Module) -> None:
    """The shape of every array, as the format's page has it."""
    steps, r = meta["steps"], meta["rank"]
    states: dict[str, tuple[int, ...]] = {name: tuple(p.shape) for name, p in model.named_parameters()}
    counters: dict[str, tuple[int, ...]] = dict.fromkeys(states, ())
    needed: dict[str, Shape] = {f"orig/{name}": shape for name, shape in states.items()}
    needed |= {"tokens": (steps, None, None), "loss": (steps,), "grad_norm": (steps,), "final_eval_loss": (None,)}
    optional: dict[str, Shape] = {"loss_lora_only": (None,)}
    for name in meta["lora_layers"]:
        m, n = states[f"{name}.weight"]
        states |= {f"{name}.lora_A": (r, n), f"{name}.lora_B": (m, r)}
        states |= {f"{name}.candidates_A": (min(m, n), n), f"{name}.candidates_B": (min(m, n), m)}
        counters |= {f"{name}.lora_A": (r, 1), f"{name}.lora_B": (1, r)}
        needed |= {f"state0/{key}": shape for key, shape in states.items() if key.startswith(f"{name}.")}
        needed |= {f"init_sel/{name}/sel_{side}": (r,) for side in ("A", "B")}
        needed |= {f"init_sel/{name}/cursor_{side}": () for side in ("A", "B")}
        needed[f"final_merged/{name}"] = (m, n)
        switches = switch_shapes(name, steps, r)
        needed, optional = needed | switches[0], optional | switches[1]
    for name, counter in counters.items():
        optional |= {f"final_opt/{name}/{key}": states[name] for key in ("m", "v")} | {
            f"final_opt/{name}/step": counter
        }
    for key in data:
        folder, _, name = key.partition("/")
        if folder.startswith("state"):
            if name not in states:
                raise UserError(f"{key} is no tensor of this model; record it anew")
            optional[key] = states[name]
    check_arrays(data, needed, optional)
    check_range(data, ["tokens"], states["model.embed_tokens.weight"][0])
    for name in meta["lora_layers"]:
        check_range(data, (f"init_sel/{name}/sel_{side}" for side in ("A", "B")), min(states[f"{name}.weight"]))
        check_range(data, (f"init_sel/{name}/cursor_{side}" for side in ("A", "B")), r)
    for key in ("final_eval_loss", "loss_lora_only"):
        if key in data and len(data[key]) > steps:
            raise UserError(f"{key} has {len(data[key])} entries for {steps} batches; record it anew")


def _loss(model: nn.Module, tokens: Any) -> Tensor:
    ids = torch.from_numpy(tokens).long()
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
