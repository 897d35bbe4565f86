"""Whether there is memory for a benchmark, asked before anything is built.

All contestants live side by side, so nine of them at 1.3B are far more than one training run. What they hold between
two steps is known from their shapes. Activations and what libraries keep for themselves come on top, so this refuses
only what cannot fit.
"""

import bisect
import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from switchlora.bench.contestants import Contestant
from switchlora.bench.options import SWITCHING, BenchOptions
from switchlora.bench.switched import DENSE
from switchlora.effective_linear import dense_is_cheaper
from switchlora.errors import UserError
from switchlora.training.presets import Preset

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of containers, v2 and v1


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes of one contestant: weights and optimizer state; gradients, of which those of one exist at a time; and
    candidates, which lie in host memory."""

    device_bytes: int
    gradient_bytes: int
    candidate_bytes: int = 0


def require_memory(rows: Sequence[Contestant], options: BenchOptions, device: torch.device) -> None:
    """Refuse contestants that do not fit into the memory together.

    Raises:
        UserError: says what they hold, what there is, and the number of layers that fits.
    """
    for sequences in options.sequences:
        measured = [row for row in rows if not row.absence and not _same_way(row, options, sequences)]
        if (found := _excess(measured, options, device)) is None:
            continue
        needed, limit, where = found
        num_fitting = bisect.bisect_left(
            range(1, options.shape.num_layers),
            True,
            key=lambda num: _excess(measured, dataclasses.replace(options, num_layers=num), device) is not None,
        )
        fewer = f", or --num-layers {num_fitting} at most" if num_fitting else ""
        raise UserError(
            f"--model {options.model}: {_named(measured)} hold {needed / 1e9:,.1f} GB together, and {where} has "
            f"{limit / 1e9:,.1f} GB; give fewer --methods or --ranks{fewer}"
        )


def _excess(rows: Sequence[Contestant], options: BenchOptions, device: torch.device) -> tuple[int, int, str] | None:
    """Bytes that are needed, bytes that there are, and where, if the former are more."""
    needed, of_candidates = needed_bytes(rows, options)
    host = host_memory_bytes()
    if device.type == "cpu":
        asked = [(needed + of_candidates, host, "this machine")]
    else:
        there = torch.cuda.get_device_properties(device).total_memory
        asked = [(needed, there, "the GPU"), (of_candidates, host, "this machine")]
    return next((one for one in asked if one[0] > one[1]), None)


def needed_bytes(rows: Iterable[Contestant], options: BenchOptions) -> tuple[int, int]:
    """What all hold at once beside each other and the model that they start from, and of candidates."""
    held = [held_by(row, options) for row in rows]
    hidden, ordinary = _num_numbers(options.shape)
    base = (hidden + ordinary) * _size(options.dtype)
    of_device = base + sum(one.device_bytes for one in held) + max(one.gradient_bytes for one in held)
    return of_device, sum(one.candidate_bytes for one in held)


def held_by(row: Contestant, options: BenchOptions) -> Held:
    """By formula; what is small (step counts, buffers) is left out."""
    (hidden, ordinary), weight = _num_numbers(options.shape), _size(options.dtype)
    moment = _size(options.moments) if options.moments != "own" else weight
    if row.r is None:
        return Held((hidden + ordinary) * (weight + 2 * moment), (hidden + ordinary) * weight)
    shapes, r = _matrices(options.shape), row.r
    factors = sum(num * r * (m + n) for num, m, n in shapes)
    if row.method == "galore":
        state = 2 * ordinary + sum(num * r * (2 * max(m, n) + min(m, n)) for num, m, n in shapes)
        return Held((hidden + ordinary + state) * weight, (hidden + ordinary) * weight)
    if row.method not in SWITCHING:
        held = (hidden + ordinary + factors) * weight + 2 * (factors + ordinary) * moment
        return Held(held, (factors + ordinary) * weight)
    factor = _size(options.factor_dtype)
    wide = _size("fp32" if options.moments == "own" else options.moments)
    held = (hidden + ordinary) * weight + factors * factor + 2 * (factors + ordinary) * wide
    pooled = not row.never_switches and math.isfinite(options.interval)
    pool = sum(num * min(m, n) * (m + n) for num, m, n in shapes) * factor if pooled else 0
    gradients = 0 if row.method == "switchlora-fused" else factors * factor + ordinary * weight
    return Held(held, gradients, pool)


def host_memory_bytes() -> int:
    """Of the machine, or of the container that this process is in."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in map(Path, LIMITS):
        if limit.is_file() and (text := limit.read_text("ascii").strip()).isdigit():
            size = min(size, int(text))
    return size


def _matrices(shape: Preset) -> list[tuple[int, int, int]]:
    """(how many, m, n) of the hidden matrices of a LLaMA."""
    h, ffn, num = shape.hidden_size, shape.ffn_size, shape.num_layers
    return [(4 * num, h, h), (2 * num, ffn, h), (num, h, ffn)]


def _num_numbers(shape: Preset) -> tuple[int, int]:
    """In hidden matrices, and in embedding, head and norms."""
    hidden = sum(num * m * n for num, m, n in _matrices(shape))
    return hidden, shape.hidden_size * (2 * shape.vocab_size + 2 * shape.num_layers + 1)


def _size(dtype: str) -> int:
    return {"fp32": 4, "bf16": 2}[dtype]


def _same_way(row: Contestant, options: BenchOptions, sequences: int) -> bool:
    """Whether it will not be measured, because `switchlora` takes this way anyway."""
    num_tokens, way, shapes = sequences * options.seq_len, DENSE.get(row.method), _matrices(options.shape)
    return row.r is not None and all(dense_is_cheaper(m, n, row.r, num_tokens) == way for _, m, n in shapes)


def _named(rows: Sequence[Contestant], limit: int = 3) -> str:
    names = [row.name for row in rows]
    return "; ".join(names if len(names) <= limit else [*names[:limit], f"{len(names) - limit} more"])
