"""`make soak`: kill training of two processes at 200 random moments, and 20 times under a real torchrun; lose nothing.

    python -m tests.soak [--kills 200] [--restarts 20] [--seed 0]

First part: pairs of processes are forked from this one, which has imported everything, and killed with SIGKILL after a
random time, one of them or both; where one is, the other one follows, as torchrun would have it. The next pair goes on
in the folder that is left. Whenever a run comes to its end, its losses and weights must be those of a run that nobody
disturbed, bit for bit; whatever is left on the way, every checkpoint that has a name must be whole, and none that was
whole may be gone. Both strategies take turns.

Second part: one torchrun whose processes kill themselves at random places (`distributed.faulty`), and which starts them
again.

Prints what was killed when; ends with exit code 1 at the first thing that is not as it should be.
"""

import argparse
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from switchlora.training import export
from switchlora.training.checkpoint import inspect
from switchlora.training.loop import pretrain
from switchlora.training.options import PretrainOptions
from tests.distributed.ranks import free_port, join_launch, warm
from tests.distributed.runs import assert_same_bits, torchrun_words
from tests.integration.pretrain.conftest import MODEL, RUN

FAULTY = str(Path(__file__).parent / "distributed" / "faulty.py")
STRATEGIES = ("ddp", "fsdp")
STEPS = 12


def options_of(folder: Path, output: Path, strategy: str, **changes: Any) -> PretrainOptions:
    """A run of a second or two, which writes a checkpoint after every step."""
    values = {**RUN, "steps": STEPS, "save_every": 1, "eval_every": 0, "eval_tokens": 100, **changes}
    model, data = str(folder / "config.json"), (str(folder / "text.txt"),)
    return PretrainOptions(output=str(output), model=model, data=data, parallel=strategy, **values)


def fork_pair(options: PretrainOptions) -> list[Any]:
    """Two processes that train; they end with 0 if they come to the end."""
    port, context = free_port(), multiprocessing.get_context("fork")
    pair = [context.Process(target=_train, args=(rank, port, options)) for rank in range(2)]
    for process in pair:
        process.start()
    return pair


def _train(rank: int, port: int, options: PretrainOptions) -> None:
    join_launch(rank, 2, port)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    # What is written for people takes longer than the training, and would get most of the kills.
    export.continuations = functools.partial(export.continuations, new_tokens=2)
    export.write_loss_curve = lambda *args, **settings: None
    pretrain(options)


def disturb(pair: list[Any], chance: random.Random, longest_seconds: float) -> str:
    """Kill one or both after a while; what was done, "" if they were faster."""
    deadline = time.monotonic() + chance.uniform(0, longest_seconds)
    while time.monotonic() < deadline and any(process.is_alive() for process in pair):
        time.sleep(0.001)
    victims = chance.choice(([0], [1], [0, 1]))
    alive = [rank for rank in victims if pair[rank].is_alive()]
    for rank in alive:
        os.kill(pair[rank].pid, signal.SIGKILL)
    if alive and len(victims) == 1:
        pair[1 - victims[0]].join(chance.choice((0.0, 0.3)))  # sometimes there is time to notice
        pair[1 - victims[0]].kill()
    for process in pair:
        process.join()
    return " and ".join(map(str, alive))


def checkpoint_steps(output: Path) -> list[int]:
    """The steps of all checkpoints with a name, each of which is checked."""
    folder = output / "checkpoints"
    return sorted(inspect(path).step for path in folder.glob("step-*")) if folder.is_dir() else []


def soak_forked(folder: Path, num_kills: int, chance: random.Random) -> None:
    """The first part."""
    warm()
    seconds = {}
    for strategy in STRATEGIES:
        began = time.monotonic()
        pair = fork_pair(options_of(folder, folder / strategy, strategy))
        for process in pair:
            process.join()
            assert process.exitcode == 0, f"the undisturbed {strategy} run ended with {process.exitcode}"
        seconds[strategy] = time.monotonic() - began
    print(f"undisturbed: {', '.join(f'{name} {took:.1f} s' for name, took in seconds.items())}", flush=True)
    done, found_at, num_runs = 0, Counter[int](), 0
    while done < num_kills:
        strategy, output = STRATEGIES[num_runs % 2], folder / f"run-{num_runs}"
        options, before, finished = options_of(folder, output, strategy), 0, False
        while not finished:
            pair = fork_pair(options)
            killed = disturb(pair, chance, seconds[strategy] if done < num_kills else 600)
            steps = checkpoint_steps(output)
            latest = steps[-1] if steps else 0
            assert latest >= before, f"{output}: the checkpoint of step {before} is gone"
            finished, before = (output / "result.json").exists(), latest
            if killed:
                done += 1
                found_at[latest] += 1
                print(f"kill {done}: {strategy}, process {killed}; goes on after step {latest}", flush=True)
            else:
                codes = [process.exitcode for process in pair]
                assert codes == [0, 0], f"{output}: nobody killed them, and they ended with {codes}"
        assert_same_bits(output, folder / strategy)
        shutil.rmtree(output)
        num_runs += 1
    print(
        f"{done} kills in {num_runs} runs, after {len(found_at)} different checkpoints; every run ended alike",
        flush=True,
    )


def soak_torchrun(folder: Path, num_restarts: int, seed: int) -> None:
    """The second part."""
    steps = 3 * num_restarts + 10
    options = options_of(folder, folder / "launched", "ddp", method=FAULTY, steps=steps, save_every=1)
    words = torchrun_words("--max-restarts", str(num_restarts + 1))
    (folder / "launched.yaml").write_text(options.to_yaml())
    words += ["--config", str(folder / "launched.yaml")]
    plain = subprocess.run([*words, "--output", str(folder / "whole")], capture_output=True, text=True, check=False)
    assert plain.returncode == 0, plain.stderr
    faults = {"FAULT": f"random:{num_restarts}:{seed}", "FAULT_MARK": str(folder / "mark")}
    began = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **faults})
    assert done.returncode == 0, done.stderr
    starts = done.stdout.count("linear layers converted")
    assert starts == num_restarts + 1, f"{starts} starts instead of {num_restarts + 1}"
    assert_same_bits(folder / "launched", folder / "whole")
    print(f"{num_restarts} restarts under torchrun in {time.monotonic() - began:.0f} s; it ended alike", flush=True)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    for name, default in (("kills", 200), ("restarts", 20), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given, began = parser.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["SWITCHLORA_CACHE"] = str(folder / "cache")
        (folder / "config.json").write_text(json.dumps({**MODEL, "num_hidden_layers": 1}))
        (folder / "text.txt").write_bytes(Path(argparse.__file__).read_bytes())
        try:
            soak_forked(folder, given.kills, random.Random(given.seed))
            soak_torchrun(folder, given.restarts, given.seed)
        except AssertionError as error:
            print(f"LOST: {error}", file=sys.stderr)
            return 1
    print(f"nothing lost; {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
