"""Records of runs that were never made, to test what is done with records."""

import math
from typing import Any

from switchlora.compare.plan import Plan, PlannedRun

STEP_SECONDS = {"full": 0.5, "switchlora": 0.4, "lora": 0.4}
BYTES = {"full": 4000, "switchlora": 2500, "lora": 2500}


def record(run: PlannedRun, loss: float) -> dict[str, Any]:
    """As `results.gather` makes it; an infinite loss is a run that diverged."""
    diverged, label = math.isinf(loss), run.contender.label
    tokens = [100 * quarter for quarter in (1, 2, 3, 4)]
    validated = [9.0, 8.0] if diverged else [loss + 3, loss + 2, loss + 1, loss]
    if diverged:
        tokens = tokens[:2]
    return {
        "id": run.id,
        "label": label,
        "r": run.contender.r,
        "lr": run.lr,
        "other_lr": run.other_lr,
        "diverged": diverged,
        "error": "step 3: loss nan" if diverged else None,
        "step_seconds": STEP_SECONDS.get(label, 0.45),
        "curve": {
            "tokens": tokens,
            "seconds": [t / 400 * run.steps * STEP_SECONDS.get(label, 0.45) for t in tokens],
            "validation_loss": validated,
            "train_tokens": tokens,
            "train_loss": validated,
        },
        "method": run.options().method,
        "seed": run.seed,
        "steps": run.steps,
        "validation_loss": None if diverged else loss,
        "validation_perplexity": None if diverged else math.exp(loss),
        "bits_per_byte": None if diverged else loss / 2,
        "trainable_parameters": 1000,
        "bytes_by_kind": {
            "weight_bytes": BYTES.get(label, 3000),
            "buffer_bytes": 0,
            "gradient_bytes": 100,
            "optimizer_device_bytes": 200,
            "optimizer_host_bytes": 0,
            "candidate_device_bytes": 0,
            "candidate_host_bytes": 300,
        },
        "peak_memory_bytes": 10_000,
        "tokens_per_second": 200.0,
        "training_seconds": 400.0,
        "command": f"switchlora pretrain --seed {run.seed} # <script>alert(1)</script>",
        "config": run.options().to_dict(),
        "data_fingerprint": "abc",
        "versions": {"python": "3"},
        "hardware": {"cpu": "one", "device": "cuda"},
        "threads": 1,
    }


def finish(plan: Plan, loss_of: Any, limit: int = 1000) -> dict[str, dict[str, Any]]:
    """Records of all runs, or of the first `limit`, in the order in which the plan gives them out."""
    records: dict[str, dict[str, Any]] = {}
    losses: dict[str, float] = {}
    while (ready := plan.ready(losses)) and len(records) < limit:
        run = ready[0]
        losses[run.id] = loss_of(run)
        records[run.id] = record(run, losses[run.id])
    return records
