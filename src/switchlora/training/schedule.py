"""The learning rate as a function of the step: linear warm-up, then cosine, linear or constant."""

import math


def learning_rate_factor(step: int, *, steps: int, warmup: int, schedule: str, min_lr_ratio: float) -> float:
    """The share of the peak learning rate at optimizer step `step` (from 0) of `steps`.

    The first of `warmup` steps has 1 / warmup of it; the last step of a cosine or linear schedule is just above
    `min_lr_ratio`.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    fall = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return min_lr_ratio + (1 - min_lr_ratio) * fall
