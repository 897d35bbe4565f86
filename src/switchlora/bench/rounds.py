"""The measurement itself: in every round each contestant trains one step on the round's batch, in a shuffled order.

Shuffled anew in every round, by the seed, because a step leaves caches, clocks and the allocator in some state, and a
contestant that always came after the same one would always inherit the same. Python's garbage collector works
between rounds, never inside a step.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from switchlora.bench import galore
from switchlora.bench.counts import Counts, count
from switchlora.bench.options import BenchOptions
from switchlora.bench.progress import Progress
from switchlora.bench.switched import num_switches
from switchlora.bench.trainee import Trainee

ORDER, TOKENS = 0, 1  # purposes of randomness
WARMUP_ROUND = 2**31


@dataclass
class Record:
    """What was seen of one contestant.

    seconds: of each measured round, by part; refresh_seconds: of GaLore's whole steps with a decomposition;
    num_switches: vectors exchanged in the measured rounds, None where nothing switches.
    """

    counts: Counts
    seconds: list[dict[str, float]] = field(default_factory=list)
    refresh_seconds: list[float] = field(default_factory=list)
    num_switches: int | None = None


@dataclass(frozen=True)
class Rounds:
    """records: by contestant's name; order: who came when, round by round."""

    records: dict[str, Record]
    order: list[list[str]]


def run_rounds(
    trainees: list[Trainee], options: BenchOptions, sequences: int, device: torch.device, say: Callable[[str], None]
) -> Rounds:
    """Count, warm up, and measure `options.steps` rounds of all trainees on batches of so many sequences."""
    first = batch(options, sequences, WARMUP_ROUND).to(device)
    records = {trainee.contestant.name: Record(count(trainee, first)) for trainee in trainees}
    progress = Progress(options.steps, say)
    for number in range(options.warmup_steps):
        progress.begin()
        tokens = batch(options, sequences, WARMUP_ROUND + 1 + number).to(device)
        for trainee in trainees:
            trainee.step(tokens)
        gc.collect()
    progress.announce(f"{len(trainees)} methods")
    before = {trainee.contestant.name: num_switches(trainee.optimizer) for trainee in trainees}
    order = []
    with garbage_between_rounds() as collect:
        for number in range(options.steps):
            tokens = batch(options, sequences, number).to(device)
            order.append([trainees[place].contestant.name for place in shuffled(options, len(trainees), number)])
            by_name = {trainee.contestant.name: trainee for trainee in trainees}
            for name in order[-1]:
                records[name].seconds.append(by_name[name].step(tokens))
            collect()
            progress.tell(number + 1)
    for trainee in trainees:
        record, name = records[trainee.contestant.name], trainee.contestant.name
        after, start = num_switches(trainee.optimizer), before[name]
        record.num_switches = None if after is None or start is None else after - start
        if trainee.contestant.method == "galore":
            record.refresh_seconds = time_refreshes(trainee, first)
    return Rounds(records, order)


def time_refreshes(trainee: Trainee, tokens: Tensor) -> list[float]:
    """Seconds of whole steps in which GaLore decomposes its gradients: a few, or one where that takes long."""
    found: list[float] = []
    while len(found) < galore.MAX_REFRESHES and sum(found) < galore.ENOUGH_SECONDS:
        galore.refresh_in_next_step(trainee.optimizer, True)
        found.append(trainee.step(tokens)["step"])
    return found


def batch(options: BenchOptions, sequences: int, number: int) -> Tensor:
    """Random tokens (sequences, seq_len), a function of (seed, number). Their loss is of no interest here."""
    generator = np.random.default_rng([options.seed, TOKENS, number])
    tokens = generator.integers(0, options.shape.vocab_size, (sequences, options.seq_len))
    return torch.from_numpy(tokens)


def shuffled(options: BenchOptions, num_trainees: int, number: int) -> list[int]:
    """The order of round `number`, a function of (seed, number)."""
    return [int(i) for i in np.random.default_rng([options.seed, ORDER, number]).permutation(num_trainees)]


@contextlib.contextmanager
def garbage_between_rounds() -> Iterator[Callable[[], int]]:
    """Stop the garbage collector, and hand over what runs it."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield gc.collect
    finally:
        if was_on:
            gc.enable()
