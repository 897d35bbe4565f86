"""The small models that are stepped on the pretend GPU: options of `convert` and of the optimizer, by name."""

from typing import Any

import torch

DIMS = (7, 13, 7, 13)  # two layers of one shape and one of another
NUM_STEPS = 8
BF16 = torch.bfloat16
ALL_BF16 = {"dtype": BF16, "factor_dtype": BF16, "moment_dtype": BF16}
CASES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, eager": {"fused": False},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": BF16},
    "bfloat16, eager": {"dtype": BF16, "fused": False},
    "bfloat16 throughout": ALL_BF16,
    "bfloat16 throughout, eager": {**ALL_BF16, "fused": False},
    "autocast": {"autocast": True},
    "fused backward": {"fused_backward": True},
    "fused backward, bfloat16 throughout": {**ALL_BF16, "fused_backward": True},
    "activation checkpointing": {"checkpoint": True},
    "A and B in turn": {"alternate": True},
    "fresh candidates": {"candidates": "fresh"},
    "random order": {"order": "random"},
    "pool on the device": {"candidate_device": "model"},
    "LoRA's start": {"init_lora_weights": "lora"},
    "Muon's rule": {"rule": "muon"},
    "along the gradient": {"polar": 0.3},
    "never switched": {"interval": float("inf")},
    "twice as often": {"interval": 2.0, "freeze_steps": 1},
    "rows that come back at once": {"r": 6},  # of 7 candidates
}
