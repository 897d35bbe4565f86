"""`switchlora plan`: from options to a table."""

from pathlib import Path

from switchlora.machine.files import atomic_write_json, require_writable, writing
from switchlora.planning.estimate import Plan, as_json, plan_of
from switchlora.planning.options import PlanOptions

GIGA = 1e9


def plan(options: PlanOptions) -> Plan:
    """Print the plan, and write it where that was asked for.

    Raises:
        UserError: as the run itself would.
    """
    path = None if options.output is None else Path(options.output).expanduser()
    if path is not None:
        require_writable(path.parent)
    found = plan_of(options)
    print(shown(options, found), flush=True)
    if path is not None:
        with writing("the plan", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_json(path, as_json(options, found))
    return found


def shown(options: PlanOptions, plan: Plan) -> str:
    """The plan for people."""
    memory, rank = plan.memory, "" if plan.r is None else f" r={plan.r}"
    devices = "1 device" if options.gpus == 1 else f"{options.gpus:,} devices, {options.strategy}"
    passes = "1 forward pass" if plan.num_micro_batches == 1 else f"{plan.num_micro_batches} forward passes"
    stored = options.dtype + ("" if plan.r is None else f" with {options.run().factor_dtype} factors")
    lines = [
        f"{options.model}, {options.method}{rank}, {stored}, {devices}; {plan.tokens_per_step:,} tokens a step, "
        f"{passes} of {plan.micro_batch_size} sequences",
        "",
        "on each device",
        *_bytes("weights", memory.weight_bytes),
        *_bytes("gradients", memory.gradient_bytes),
        *_bytes("optimizer state", memory.optimizer_bytes),
        *_bytes("candidates", memory.candidate_device_bytes),
        *_bytes("gathered", memory.gathered_bytes),
        *_bytes("activations", memory.activation_bytes),
        *_bytes("together", memory.device_bytes),
        *_bytes("candidates, each on its host", memory.candidate_host_bytes),
        "",
        f"of {options.gpu_memory / GIGA:,.1f} GB: "
        + ("it fits" if plan.fits else "IT DOES NOT FIT")
        + f"; largest micro-batch {_largest(plan)}"
        + ("" if plan.r is None else f", largest rank {_or_none(plan.largest_rank, 'none')}"),
        "",
        "a step, of each device",
        f"  {'FLOPs':30}{plan.flops:>18.3e}",
    ]
    for kind, num_bytes in plan.traffic_bytes.items():
        lines += _bytes(f"given to {kind.replace('_', '-')}", round(num_bytes))
    lines += _bytes("sent in a ring", round(plan.sent_bytes))
    low, high = plan.step_seconds
    lines.append(
        f"  {'seconds, estimated':30}{low:>18.3f} to {high:.3f}  (at {options.utilisation:.0%} of "
        f"{options.peak_tflops:g} TFLOP/s and {options.bandwidth:g} GB/s)"
    )
    return "\n".join(lines)


def _largest(plan: Plan) -> str:
    if plan.largest_micro_batch == plan.micro_batch_size * plan.num_micro_batches:
        return f"{plan.largest_micro_batch:,} (all that the batch gives each)"
    return _or_none(plan.largest_micro_batch, "none")


def _bytes(name: str, num_bytes: int) -> list[str]:
    return [f"  {name:30}{num_bytes:>18,}  ({num_bytes / GIGA:,.2f} GB)"] if num_bytes else []


def _or_none(number: int | None, otherwise: str) -> str:
    return otherwise if number is None else f"{number:,}"
