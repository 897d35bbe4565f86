"""From an outline to a plan: memory, traffic, FLOPs and seconds of a step, and the largest sizes that fit.

The seconds are an estimate and nothing more. Products run at a share of the peak rate that the user states, those of
the weight update at less of it (`SLOWER`), and every byte that collectives move passes a link of the stated bandwidth,
as in a ring. What overlaps is not known beforehand, so there are two figures: all communication hidden behind products,
and none.
"""

import dataclasses
from typing import Any

from switchlora.distributed.traffic import ring_bytes
from switchlora.errors import UserError
from switchlora.methods import method_named
from switchlora.options.values import largest_divisor
from switchlora.planning.options import PlanOptions
from switchlora.planning.outline import WEIGHT, Outline, outline
from switchlora.planning.shares import Memory, memory_of
from switchlora.planning.traffic import traffic_of
from switchlora.training.models import load_config
from switchlora.training.options import PretrainOptions
from switchlora.training.resolve import resolve
from switchlora.training.strategies import check_strategy, share_of_batch

# How many times longer a product of the weight update takes than one of the model, by `--dtype`: in TF32
# (`weight_update.products_for`), and in float32 without tensor cores; of an H100, 989 : 494 : 67 TFLOP/s.
SLOWER = {"bf16": 2.0, "bf16-mixed": 989 / 67, "fp32": 1.0}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Of one device, where not said otherwise."""

    r: int | None
    micro_batch_size: int
    num_micro_batches: int
    memory: Memory
    traffic_bytes: dict[str, float]
    sent_bytes: float
    flops: float
    step_seconds: tuple[float, float]  # communication hidden, and not
    fits: bool
    largest_micro_batch: int | None  # None: not even one sequence fits
    largest_rank: int | None  # None: none fits, or the method has none
    tokens_per_step: int  # of all devices


def plan_of(options: PlanOptions) -> Plan:
    """The plan.

    Raises:
        UserError: as the run itself would, for model, method, rank and batch.
    """
    run = options.run()
    run = resolve(run, config=load_config(run.model))  # a hub model's rank
    check_strategy(run, options.strategy, options.gpus, "devices")
    share = share_of_batch(run, options.gpus, "devices")
    micro = run.micro_batch_size or share
    run = dataclasses.replace(run, micro_batch_size=micro)
    drawn = outline(run, options.strategy)
    memory = memory_with(options, drawn)
    passes = share // micro
    traffic = traffic_with(options, run, drawn, passes)
    own = 1 / options.gpus if options.strategy == "fsdp" else 1.0
    of_model, of_update = passes * _total(drawn, "flops"), own * _total(drawn, "update_flops")
    of_rule = own * _total(drawn, "orthogonalise_flops")
    sent = ring_bytes(traffic, options.gpus)
    at_peak = of_model + of_rule + SLOWER[run.dtype] * of_update
    compute = at_peak / (options.peak_tflops * 1e12 * options.utilisation)
    link = sent / (options.bandwidth * 1e9)
    assert run.seq_len is not None and run.batch_size is not None
    return Plan(
        r=run.r,
        micro_batch_size=micro,
        num_micro_batches=passes,
        memory=memory,
        traffic_bytes=traffic,
        sent_bytes=sent,
        flops=of_model + of_rule + of_update,
        step_seconds=(max(compute, link), compute + link),
        fits=memory.device_bytes <= options.gpu_memory,
        largest_micro_batch=_largest_micro_batch(options, memory, micro, share),
        largest_rank=_largest_rank(options, run, drawn, memory) if run.r is not None else None,
        tokens_per_step=run.batch_size * run.seq_len,
    )


def memory_with(options: PlanOptions, drawn: Outline) -> Memory:
    """What each device holds of an outline."""
    return memory_of(
        drawn,
        options.gpus,
        options.strategy,
        checkpoint_activations=options.checkpoint_activations,
        gathered_item_bytes=2 if options.dtype == "bf16-mixed" else None,
    )


def traffic_with(options: PlanOptions, run: PretrainOptions, drawn: Outline, passes: int) -> dict[str, float]:
    """What each device hands to collectives in a step."""
    method = method_named(run.method)
    mixed = options.dtype == "bf16-mixed" and options.strategy == "fsdp"
    compressed = run.grad_compression == "bf16" and options.strategy == "ddp"
    return traffic_of(
        drawn,
        options.gpus,
        options.strategy,
        passes=passes,
        interval=run.interval if "interval" in method.uses else float("inf"),
        muon=getattr(method, "rule", None) == "muon",
        alternate=run.alternate and "alternate" in method.uses,
        gathered_item_bytes=2 if mixed else None,
        reduced_item_bytes=2 if compressed else 4 if mixed else None,
    )


def _total(drawn: Outline, name: str) -> float:
    return float(drawn.num_layers * getattr(drawn.block, name) + getattr(drawn.rest, name))


def _largest_micro_batch(options: PlanOptions, memory: Memory, micro: int, share: int) -> int | None:
    """Activations grow with it, and nothing else; it must divide the share."""
    room = options.gpu_memory - (memory.device_bytes - memory.activation_bytes)
    most = int(room // (memory.activation_bytes / micro))
    return largest_divisor(share, most) if most > 0 else None


def _largest_rank(options: PlanOptions, run: PretrainOptions, drawn: Outline, memory: Memory) -> int | None:
    """What a rank adds is about proportional to it: two points give a guess, near which the largest is found.

    At most one below the smaller side of the widest layer that has factors, where no layer could switch any more; of
    the widest matrix where the method keeps the rank in its state.
    """
    assert run.r is not None

    def bytes_at(r: int) -> int | None:
        try:
            return memory_with(options, outline(dataclasses.replace(run, r=r))).device_bytes
        except UserError:  # more than the layers have
            return None

    other = run.r // 2 if run.r >= 4 else run.r + 1  # a rank that every method takes
    here, there = memory.device_bytes, bytes_at(other)
    slope = 1.0 if there is None else max(1.0, (here - there) / (run.r - other))
    guess = int(run.r + (options.gpu_memory - here) / slope)
    converted = [(layer.m, layer.n) for layer in drawn.block.factors]
    matrices = [piece.shape for piece in drawn.block.pieces if piece.kind == WEIGHT and len(piece.shape) == 2]
    most = max(map(min, converted or matrices)) - 1
    low, high, r = 0, most + 1, max(1, min(guess, most))  # low fits, high does not
    beside = True
    while high - low > 1:
        held = bytes_at(r)
        fits = held is not None and held <= options.gpu_memory
        low, high = (r, high) if fits else (low, r)
        r = (low + 1 if fits else high - 1) if beside else (low + high) // 2
        beside = False
    return low or None


def as_json(options: PlanOptions, plan: Plan) -> dict[str, Any]:
    """The plan as plain data, with what was asked."""
    return {"options": options.to_dict(), "plan": dataclasses.asdict(plan)}
