"""What the trainer relies on in every method."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch

from switchlora.errors import UserError
from switchlora.layer import SwitchLoraLinear
from switchlora.methods import METHODS, OF_METHODS
from switchlora.methods.parameters import clipped
from switchlora.optimizer import SwitchLora
from switchlora.training.models import build_model
from switchlora.training.options import PretrainOptions
from switchlora.training.parallel import check_launch
from switchlora.training.resolve import difference, resolve

TOKENS = torch.randint(0, 2048, (2, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", METHODS)
def test_trains_and_finishes_as_a_plain_model_with_the_same_logits(name: str) -> None:
    method, options = METHODS[name], resolve(PretrainOptions(method=name, steps=20, lr=1e-2))
    model = build_model("tiny", seed=0)
    plain_keys = set(model.state_dict())
    assert "trainable parameters" in method.prepare(model, options)
    optimizer = method.optimizer(model, options)
    losses = []
    for _ in range(20):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1
    with torch.no_grad():
        before = model(input_ids=TOKENS).logits
        method.finish(model)
        assert torch.equal(model(input_ids=TOKENS).logits, before)
    assert set(model.state_dict()) == plain_keys
    assert not any(isinstance(module, SwitchLoraLinear) for module in model.modules())


@pytest.mark.parametrize("name", METHODS)
def test_every_trainable_parameter_is_in_one_group_and_rates_are_where_they_belong(name: str) -> None:
    method, options = METHODS[name], resolve(PretrainOptions(method=name, lr=0.5, other_lr=0.25))
    model = build_model("tiny", seed=0)
    method.prepare(model, options)
    optimizer = method.optimizer(model, options)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {p for p in model.parameters() if p.requires_grad}
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            other = any(part in parameter_name for part in ("embed", "norm", "lm_head"))
            assert rates[parameter] == (0.25 if other else 0.5), parameter_name


def test_the_share_that_was_asked_for_is_the_optimizers() -> None:
    options = resolve(PretrainOptions(method="switchlora-polar", polar=0.3))
    model = build_model("tiny", seed=0)
    METHODS["switchlora-polar"].prepare(model, options)
    optimizer = METHODS["switchlora-polar"].optimizer(model, options)
    assert isinstance(optimizer, SwitchLora) and optimizer.config.polar == 0.3


OF_PAPERS = {
    "apollo": {"alpha": 1.0, "per_channel": True, "gap": 200},
    "apollo-mini": {"alpha": math.sqrt(128), "per_channel": False, "gap": 200, "r": 1},
    "muon": {"momentum": 0.95},
    "switchlora-muon": {"momentum": 0.95},
}


@pytest.mark.parametrize("name", OF_PAPERS)
def test_hidden_matrices_are_trained_with_the_settings_of_the_paper(name: str) -> None:
    method, options = METHODS[name], resolve(PretrainOptions(method=name))
    model = build_model("tiny", seed=0)
    method.prepare(model, options)
    group = method.optimizer(model, options).param_groups[0]
    assert {setting: group[setting] for setting in OF_PAPERS[name]} == OF_PAPERS[name]


def test_only_switchlora_switches() -> None:
    counts = {}
    for name, method in METHODS.items():
        options = resolve(PretrainOptions(method=name, steps=20))
        model = build_model("tiny", seed=0)
        method.prepare(model, options)
        optimizer = method.optimizer(model, options)
        for _ in range(3):
            model(input_ids=TOKENS, labels=TOKENS).loss.backward()
            optimizer.step()
        counts[name] = method.totals(optimizer).get("switches_done", 0)
    assert {name for name, count in counts.items() if count} == {"switchlora", "switchlora-muon", "switchlora-polar"}


def test_lora_takes_any_rank_and_ignores_the_switching_options() -> None:
    options = resolve(PretrainOptions(method="lora", r=1, init_lora_weights="switchlora", interval=2.0))
    assert "r=1" in METHODS["lora"].prepare(build_model("tiny", seed=0), options)


def test_a_warm_start_that_cannot_be_is_refused() -> None:
    options = PretrainOptions.merge({"method": "relora", "warm_start_steps": 20, "steps": 40})
    assert resolve(options).warm_start_steps == 20
    with pytest.raises(UserError, match=r"--warm-start-steps: DDP cannot change what is trained"):
        check_launch(resolve(dataclasses.replace(options, parallel="ddp")), {"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(UserError, match=r"--warm-start-steps 40: must be less than --steps 40; 10 is a good start"):
        PretrainOptions.merge({"method": "relora", "warm_start_steps": 40, "steps": 40})


def test_defaults_are_read_without_torch() -> None:
    code = "import sys, switchlora.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_uses_names_options_that_exist() -> None:
    assert set(PretrainOptions.specs()) >= OF_METHODS
    for method in METHODS.values():
        assert method.uses <= OF_METHODS


def test_gradients_whose_size_does_not_matter_are_not_in_the_norm_that_is_clipped() -> None:
    for name, method in METHODS.items():
        model, options = build_model("tiny", seed=0), resolve(PretrainOptions(method=name))
        method.prepare(model, options)
        trainable = [p for p in model.parameters() if p.requires_grad]
        apart = [layer.weight for layer in model.modules() if isinstance(layer, SwitchLoraLinear)]
        expected = [p for p in trainable if name != "switchlora-polar" or not any(p is weight for weight in apart)]
        found = clipped(trainable, method.optimizer(model, options))
        assert [id(p) for p in found] == [id(p) for p in expected], name


@pytest.mark.parametrize(
    ("given", "every", "rewarm"),
    [
        ({"steps": 400}, 100, 10),
        ({"steps": 100_000}, 1000, 50),
        ({"steps": 400, "warm_start_steps": 200}, 50, 5),
        ({"steps": 400, "restart_every": 60}, 60, 6),
        ({"steps": 400, "restart_every": 60, "rewarm_steps": 30}, 60, 30),
    ],
)
def test_relora_restarts_in_runs_of_any_length(given, every, rewarm):
    options = resolve(PretrainOptions(method="relora", **given))
    assert (options.restart_every, options.rewarm_steps) == (every, rewarm)
    assert resolve(options) == options


def test_relora_that_would_never_restart_is_refused():
    with pytest.raises(UserError, match="--restart-every 400: would never restart in 400 steps; give 100"):
        resolve(PretrainOptions(method="relora", steps=400, restart_every=400))


def test_options_without_use_do_not_tell_runs_apart():
    a, b = (resolve(PretrainOptions(method="full", restart_every=every)) for every in (None, 1000))
    assert difference(a, b) == ()
    a, b = (resolve(PretrainOptions(method="relora", restart_every=every)) for every in (10, 20))
    assert "--restart-every" in difference(a, b)
