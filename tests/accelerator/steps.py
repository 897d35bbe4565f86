"""Steps of small models on the pretend GPU, each case beside the same on the CPU; run in a process that has one.

Prints a JSON object, by case: what was seen while the optimizer stepped.
"""

import contextlib
import copy
import json
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from switchlora import SwitchLora, SwitchLoraLinear, convert, memory
from tests.accelerator.cases import CASES, DIMS, NUM_STEPS
from tests.accelerator.pretend_gpu.device import counts
from tests.numerics.cases import chain, config_of

OF_OPTIMIZER = ("fused", "fused_backward", "moment_dtype", "rule")


class Run:
    """A model, its optimizer, and batches that are on the device before the first step."""

    def __init__(self, device: str, dtype: torch.dtype = torch.float32, factor_dtype: torch.dtype | None = None,
                 autocast: bool = False, checkpoint: bool = False, **settings: Any) -> None:  # fmt: skip
        torch.manual_seed(0)
        of_optimizer = {name: settings.pop(name) for name in OF_OPTIMIZER if name in settings}
        model, config = chain(DIMS, dtype), config_of(**settings)
        convert(model, config, factor_dtype=factor_dtype)
        self.device, self.autocast, self.checkpoint = device, autocast, checkpoint
        self.model = model.to(device)
        self.optimizer = SwitchLora(self.model, config, total_steps=100, lr=1e-2, weight_decay=0.1, **of_optimizer)
        self.batches = [torch.randn(5, DIMS[0]).to(dtype).to(device) for _ in range(NUM_STEPS)]

    def backward(self, step: int) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16) if self.autocast else contextlib.nullcontext():
            x = self.batches[step]
            y = checkpoint(self.model, x, use_reentrant=False) if self.checkpoint else self.model(x)
            loss: Tensor = y.float().square().mean()
        loss.backward()
        return loss.detach()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


def observe(**case: Any) -> dict[str, Any]:
    """Train on both devices."""
    here, there = Run("cpu", **{**case, "fused": False}), Run("cuda", **case)
    losses, expected, num_launches = list[Tensor](), list[Tensor](), list[int]()
    waits, hazards = Counter[str](), Counter[str]()
    for step in range(NUM_STEPS):
        expected.append(here.backward(step))
        here.step()
        counts.reset()
        losses.append(there.backward(step))
        before = sum(counts.launches.values())
        there.step()
        num_launches.append(sum(counts.launches.values()) - before + len(counts.kernels))
        waits += Counter(counts.waits)
        torch.cuda.synchronize()  # all copies have arrived: was what they read left alone?
        hazards += Counter(counts.hazards)
    devices = {parameter.device.type for parameter in there.model.parameters()}
    devices |= {state["exp_avg"].device.type for state in there.optimizer.state.values() if "exp_avg" in state}
    return {
        "losses": [float(loss) for loss in losses],
        "expected": [float(loss) for loss in expected],
        "weights": difference(here.model, there.model),
        "switches": [run.optimizer.stats.total.switches_done for run in (here, there)],
        "waits": waits,
        "hazards": hazards,
        "launches": num_launches,
        "fused": all(group.fused for group in there.optimizer._layer_groups),
        "devices": sorted(devices),
        "copied": copied(there),
        "host_bytes": memory(there.model, there.optimizer).candidate_host_bytes,
    }


def difference(here: nn.Module, there: nn.Module) -> float:
    """The largest between two models' layers, as a share of how large their weights are."""
    pairs = zip(here.modules(), there.modules(), strict=True)
    return max(
        float((a.weight.detach() - b.weight.detach().cpu()).abs().max() / a.weight.detach().abs().max())
        for a, b in pairs
        if isinstance(a, SwitchLoraLinear)
    )


def copied(run: Run) -> bool:
    """Whether a copy, and an optimizer that loaded the state, go on as the original does; rows may be on their way."""
    again = copy.deepcopy(run)
    loaded = copy.deepcopy(run)
    loaded.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    for one in (run, again, loaded):
        for step in range(3):
            one.backward(step)
            one.step()
    parameters = [list(one.model.parameters()) for one in (run, again, loaded)]
    return all(torch.equal(p, q) and torch.equal(p, s) for p, q, s in zip(*parameters, strict=True))


if __name__ == "__main__":
    print(json.dumps({name: observe(**case) for name, case in CASES.items()}))
