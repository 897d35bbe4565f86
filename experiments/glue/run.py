"""What the models of E1 are worth on GLUE: full fine-tuning of each on five tasks, five seeds, its own learning rate.

    python experiments/glue/run.py --runs experiments/main/runs --data ../shared/data/glue [--tasks rte ...] [--jobs 2]

`experiments/main/runs` is what `switchlora compare --config experiments/main/config.yaml` leaves (seed 0, the longest
runs). Beside them `untrained-seed0` shows what pre-training is worth: the weights that all began with, from `switchlora
pretrain` with the options of `full` but `--steps 1 --warmup 0 --lr 1e-9 --other-lr 1e-9`. Each pair of model and task
is one `switchlora finetune`, whose finetune.json is kept as results/LABEL-TASK.json; one that is there stays, if it was
made with these epochs, rates and seeds.
"""

import argparse
import concurrent.futures
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
# The runs of E1 with seed 0 and 1,000 steps; factors with r = 32 = h/4.
MODELS = {
    "untrained": "untrained-seed0",
    "full": "full-lr*-seed0-1000steps",
    "lora": "lora-r32-lr*-seed0-1000steps",
    "switchlora": "switchlora-r32-lr*-seed0-1000steps",
}
EPOCHS = {"cola": 3, "sst2": 1, "mrpc": 3, "rte": 3, "stsb": 3}
RATES = ("1e-4", "3e-4", "1e-3", "3e-3")
NUM_SEEDS = 5


def checkpoint_of(runs: Path, label: str) -> Path:
    """The folder of the run of a method."""
    found = sorted(path for path in runs.glob(MODELS[label]) if path.is_dir())
    if len(found) != 1:
        sys.exit(f"--runs {runs}: holds {len(found)} runs {MODELS[label]}; run experiments/main first")
    return found[0]


def finetune(label: str, task: str, checkpoint: Path, data: str, work: Path) -> str:
    """One `switchlora finetune`, filed when it is over."""
    kept = RESULTS / f"{label}-{task}.json"
    if not kept.exists():
        output = work / f"{label}-{task}"
        words = [sys.executable, "-m", "switchlora", "finetune", "--checkpoint", str(checkpoint), "--task", task]
        words += ["--data", data, "--epochs", str(EPOCHS[task]), "--lr", *RATES, "--seeds", str(NUM_SEEDS)]
        words += ["--threads", "1", "--output", str(output)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        RESULTS.mkdir(exist_ok=True)
        shutil.copyfile(output / "finetune.json", kept)
    result = json.loads(kept.read_text("utf-8"))
    asked = {"epochs": EPOCHS[task], "lr": [float(rate) for rate in RATES], "seeds": NUM_SEEDS}
    for name, value in asked.items():
        if result["config"][name] != value:
            sys.exit(f"{kept}: has {name} {result['config'][name]}, not {value}; move it away, or change this script")
    edge = ", the best rate at the edge of those tried" * result["lr_at_the_edge"]
    metrics = result["metrics"]["dev"].items()
    return f"{label} {task}: " + ", ".join(f"{name} {m['mean']:.1f} ± {m['sd']:.1f}" for name, m in metrics) + edge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tasks", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--jobs", type=int, default=2, help="side by side, one CPU thread each")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "switchlora-glue")
    given = parser.parse_args()
    checkpoints = {label: checkpoint_of(given.runs, label) for label in given.models}
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        pairs = [(label, task) for task in given.tasks for label in given.models]
        for line in pool.map(lambda pair: finetune(*pair, checkpoints[pair[0]], given.data, given.work), pairs):
            print(line, flush=True)


if __name__ == "__main__":
    main()
