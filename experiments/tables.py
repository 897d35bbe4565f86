"""The tables of docs/evidence, made from the experiments' results: nobody types a figure.

    python experiments/tables.py            write them into the pages
    python experiments/tables.py --check    only say whether the pages hold them (a test does that too)

In a page a table stands between `<!-- table: FOLDER -->`, or `<!-- pairs: FOLDER LABEL LABEL ... -->` for differences
at equal rank to the last label (of any rank, where that has none), or `<!-- versus: FOLDER/LABEL R FOLDER ... -->` for
that arm's loss minus those of the methods of other folders, or `<!-- frontier: FOLDER FOLDER/LABEL ... -->` for
their methods by memory, or `<!-- ranks: FOLDER -->` for a spectrum.json, `<!-- looks: FOLDER NAME ... -->` for single
runs, `<!-- searched: FOLDER -->` for those of a search, `<!-- cosines: FOLDER -->` for what theory/run.py leaves, `<!--
glue: FOLDER LABEL LABEL ... -->` for what glue/run.py leaves, held against the first label, `<!-- chance: FOLDER ...
-->` for how far runs scatter that nothing distinguishes, `<!-- times: FOLDER -->` for seconds, and `<!-- end -->`;
FOLDER is below experiments/.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

from switchlora.compare.command import known_records
from switchlora.compare.finetuned import side_by_side
from switchlora.compare.options import CompareOptions
from switchlora.compare.plan import make_plan
from switchlora.compare.statistics import paired_difference, spread, student
from switchlora.compare.tables import report_data, seconds_per_step

HERE = Path(__file__).resolve().parent
PAGES = tuple(sorted((HERE.parent / "docs" / "evidence").glob("*.md")))
PLACE = re.compile(
    r"(<!-- (?P<kind>\w+): (?P<words>[\w /-]+) -->\n)(?P<old>.*?)(<!-- end -->)",
    re.DOTALL,
)

NUM_FACTORS = 35 * 2  # of experiments/model: its matrices, and their two sides
SAME_MEMORY = 1.01  # what is held counts as equal within this factor: a frontier is no matter of kilobytes


def data_of(name: str) -> dict[str, Any]:
    """What the page of experiments/NAME shows."""
    return _data_at(HERE / name)


@cache
def _data_at(folder: Path) -> dict[str, Any]:
    """Read once, for the many tables of one page."""
    plan = make_plan(CompareOptions.from_yaml(folder / "config.yaml"))
    return report_data(plan, known_records(plan, folder))


def pairs(name: str, *labels: str) -> str:
    """Loss minus that of the last label, at equal rank (if it has one) and paired by seed, as Markdown."""
    rows = {(row["label"], row["r"]): row for row in data_of(name)["rows"]}
    ranks = sorted({r for label, r in rows if label in labels and r is not None})
    last = {r: rows.get((labels[-1], r)) or rows[labels[-1], None] for r in ranks}
    lines = [
        f"| loss minus {labels[-1]}'s [95 %] | {' | '.join(f'r = {r}' for r in ranks)} |",
        "|---" * (len(ranks) + 1) + "|",
    ]
    for label in labels[:-1]:
        found = {r: rows[label, r] for r in ranks if (label, r) in rows}
        cells = [
            _difference(paired_difference(_by_seed(found[r]), _by_seed(last[r]))) if r in found else "" for r in ranks
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def versus(name: str, r: str, *others: str) -> str:
    """Loss of FOLDER/LABEL at rank r minus that of each method of others, a folder a column; `-tied` is a variant."""
    folder, _, own = name.partition("/")
    one = next(row for row in data_of(folder)["rows"] if (row["label"], row["r"]) == (own, int(r)))
    columns = [{row["label"].removesuffix("-tied"): row for row in data_of(other)["rows"]} for other in others]
    heads = ["one rate" if other.startswith("tied") else "two searched rates" for other in others]
    lines = [f"| {own} r={r} minus [95 %] | {' | '.join(heads)} |", "|---" * (len(others) + 1) + "|"]
    for label in columns[0]:
        cells = [_difference(paired_difference(_by_seed(one), _by_seed(column[label]))) for column in columns]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def table(name: str) -> str:
    """The main table of experiments/NAME as Markdown."""
    data = data_of(name)
    base = data["baseline"]
    lines = [
        f"| method | lr, other lr | seeds | perplexity | loss | loss minus {base} [95 %] | MB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*lines, *map(_line, data["rows"])]) + "\n"


def by_memory(*names: str) -> tuple[list[Mapping[str, Any]], list[int | None]]:
    """The rows of some experiments by what they hold, and for each which of them dominates it, if one does."""
    every: list[Mapping[str, Any]] = []
    for folder, _, label in reversed([name.partition("/") for name in names]):
        found = [row for row in data_of(folder)["rows"] if row["loss"]["n"] and row["memory_bytes"]]
        every += [row for row in found if label in ("", row["label"])]
    rows = list({row["name"]: row for row in every}.values())  # what stands in several, from the first of them
    rows.sort(key=lambda row: (row["memory_bytes"], row["loss"]["mean"]))
    return rows, [next((i for i, one in enumerate(rows) if _beats(one, row)), None) for row in rows]


def _beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether it has the lower mean loss and no more memory."""
    no_dearer: bool = one["memory_bytes"] <= SAME_MEMORY * other["memory_bytes"]
    return no_dearer and one["loss"]["mean"] < other["loss"]["mean"]


def frontier(*names: str) -> str:
    """All methods of some experiments by what they hold, as Markdown; the first has a row `full`."""
    rows, by = by_memory(*names)
    full = next(row for row in rows if row["label"] == "full")
    lines = ["| method | MB | perplexity | loss minus full [95 %] | dominated by |", "|---|---:|---:|---:|---|"]
    for row, other in zip(rows, by, strict=True):
        minus = "–" if row is full else _difference(paired_difference(_by_seed(row), _by_seed(full)))
        cells = (
            row["name"], _memory(row), _spread(row["perplexity"], 2), minus,
            "**nobody**" if other is None else rows[other]["name"],
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ranks(name: str) -> str:
    """Effective and stable rank of W - W_0 by layer type, as Markdown."""
    models = json.loads((HERE / name / "spectrum.json").read_text("utf-8"))["models"]
    types = list(models[0]["types"]["change"])
    lines = [f"| effective / stable rank of W − W_0 | {' | '.join(types)} |", "|---" + "|---:" * len(types) + "|"]
    for model in models:
        found = [model["types"]["change"][type] for type in types]
        cells = [f"{one['effective_rank']:.1f} / {one['stable_rank']:.1f}" for one in found]
        lines.append(f"| {model['label']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def looks(folder: str, *names: str) -> str:
    """Single runs that nobody should conclude from, as Markdown."""
    lines = ["| run | r | switches per vector | loss | perplexity |", "|---|---:|---:|---:|---:|"]
    for name in names:
        result = json.loads((HERE / folder / f"{name}.json").read_text("utf-8"))
        r = result["config"]["r"]
        each = result["switches_done"] / (NUM_FACTORS * r)
        numbers = f"{r} | {each:.1f} | {result['validation_loss']:.3f} | {result['validation_perplexity']:.2f}"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines) + "\n"


def searched(name: str) -> str:
    """The runs of an experiment's searches so far, as Markdown."""
    lines = ["| method | lr | other lr | loss | perplexity |", "|---|---:|---:|---:|---:|"]
    runs = sorted(
        (run for run in data_of(name)["runs"] if not run["counts"]), key=lambda run: (run["label"], run["lr"])
    )
    for run in runs:
        numbers = (
            "diverged | –" if run["diverged"] else f"{run['validation_loss']:.3f} | {run['validation_perplexity']:.1f}"
        )
        lines.append(f"| {run['label']} | {run['lr']:g} | {run['other_lr']:g} | {numbers} |")
    return "\n".join(lines) + "\n"


def cosines(name: str) -> str:
    """Cosines of our updates with those of full rank, means over windows (from the third on) and seeds, as Markdown."""
    lines = ["| start | r | interval | seeds | AdamW, 1 step | AdamW, 40 steps | Muon, 1 step | Muon, 40 steps |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    arms: dict[tuple[Any, ...], list[list[Mapping[str, float]]]] = {}
    for path in (HERE / name / "results").glob("*.json"):
        record = json.loads(path.read_text("utf-8"))
        arms.setdefault(_arm(record["config"]), []).append(record["windows"][2:])
    for (neither, from_lora, decay_ratio, r, interval), runs in sorted(arms.items()):
        how = (f", decay {decay_ratio:g}" if decay_ratio else "") + (", neither reset nor rest" if neither else "")
        cells = ["LoRA's" if from_lora else "the paper's", f"{r}", f"{interval:g}{how}", f"{len(runs)}"]
        for key in ("adamw_1", "adamw_40", "muon_1", "muon_40"):
            cells.append(_spread(spread([fmean(window[key] for window in windows) for windows in runs]), 3))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def chance(*names: str) -> str:
    """How far runs scatter beside what their arm and their seed do, over all arms of some experiments, as Markdown."""
    arms = {
        (row["name"], row["lr"], row["other_lr"]): [_by_seed(row)[seed] for seed in (0, 1, 2)]
        for name in names
        for row in data_of(name)["rows"]
        if sorted(_by_seed(row)) == [0, 1, 2] and not row["num_diverged"]
    }
    seeds = [fmean(losses) for losses in zip(*arms.values(), strict=True)]
    rest = [
        loss - fmean(losses) - seed + fmean(seeds)
        for losses in arms.values()
        for loss, seed in zip(losses, seeds, strict=True)
    ]
    freedom = (len(arms) - 1) * (len(seeds) - 1)
    sd = (sum(one**2 for one in rest) / freedom) ** 0.5
    reach = student(freedom) * sd * (2 / len(seeds)) ** 0.5
    head = "| arms of three seeds | a run beside its arm and seed, sd | two arms' difference, paired, 95 % by chance |"
    return f"{head}\n|---:|---:|---:|\n| {len(arms)} | {sd:.4f} ({freedom} degrees of freedom) | ± {reach:.3f} |\n"


def glue(name: str, *labels: str) -> str:
    """Fine-tuned models on the dev sets of GLUE's tasks, and the differences to the first, as Markdown."""
    lines = [
        f"| dev, % | {' | '.join(labels)} | {' | '.join(f'{label} − {labels[0]} [95 %]' for label in labels[1:])} |"
    ]
    lines.append("|---" + "|---:" * (2 * len(labels) - 1) + "|")
    results = HERE / name / "results"
    for task in sorted({path.stem.partition("-")[2] for path in results.glob("*.json")}):
        if not all((results / f"{label}-{task}.json").exists() for label in labels):
            continue  # not run yet
        found = side_by_side([str(results / f"{label}-{task}.json") for label in labels])["results"]
        for metric in found[0]["metrics"]["dev"]:
            cells = [_spread(result["metrics"]["dev"][metric], 1) for result in found]
            cells += [_difference(result["differences"]["dev"][metric], 1) for result in found[1:]]
            lines.append(f"| {task}, {metric} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def times(name: str) -> str:
    """Milliseconds a step, and the ratio to full rank's of the same seed, as Markdown, the fastest first."""
    data = data_of(name)
    seconds = {
        row["name"]: {
            seed: seconds_per_step({"curve": curve, "steps": data["steps"]}) for seed, curve in row["curves"].items()
        }
        for row in data["rows"]
    }
    lines = ["| method | ms a step | of full's |", "|---|---:|---:|"]
    for arm, own in sorted(seconds.items(), key=lambda item: fmean(item[1].values())):
        shares = spread([own[seed] / seconds["full"][seed] for seed in own])
        in_ms = spread([1000 * one for one in own.values()])
        lines.append(f"| {arm} | {_spread(in_ms, 0)} | {_spread(shares, 2)} |")
    return "\n".join(lines) + "\n"


def _arm(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """What distinguishes runs of theory/run.py beside their seeds, in the order of the table; no decay is 0."""
    from_lora = config["init_lora_weights"] == "lora"
    return not config["reset"], from_lora, config["decay_ratio"] or 0.0, config["r"], float(config["interval"])


def _line(row: Mapping[str, Any]) -> str:
    lost = f", {row['num_diverged']} diverged" if row["num_diverged"] else ""
    minus = "–" if row["is_baseline"] else _difference(row["difference"])
    memory = "" if row["device_bytes"] is None else _memory(row)
    cells = (
        row["name"], f"{row['lr']:g}, {row['other_lr']:g}", f"{row['loss']['n']}{lost}",
        _spread(row["perplexity"], 2), _spread(row["loss"], 3), minus, memory,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _memory(row: Mapping[str, Any]) -> str:
    on_host = f" + {row['host_bytes'] / 1e6:.1f}" if row["host_bytes"] else ""
    return f"{row['device_bytes'] / 1e6:.1f}{on_host}"


def _by_seed(row: Mapping[str, Any]) -> dict[int, float]:
    return {int(seed): loss for seed, loss in row["losses"].items()}


def _difference(found: Mapping[str, Any], digits: int = 3) -> str:
    if found["mean"] is None:
        return "–"
    reach = "" if found["low"] is None else f" [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"
    return f"{found['mean']:+.{digits}f}{reach}"


def _spread(found: Mapping[str, Any], digits: int) -> str:
    sd = "" if found["sd"] is None else f" ± {found['sd']:.{digits}f}"
    return "–" if found["mean"] is None else f"{found['mean']:.{digits}f}{sd}"


def written(page: str) -> str:
    """The page with every table made anew."""
    kinds = (table, pairs, versus, frontier, ranks, looks, searched, cosines, glue, chance, times)
    make = {kind.__name__: kind for kind in kinds}
    return PLACE.sub(lambda place: place[1] + make[place["kind"]](*place["words"].split()) + "<!-- end -->", page)


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for path in PAGES:
        before = path.read_text("utf-8")
        after = written(before)
        if arguments.check and before != after:
            sys.exit(f"docs/evidence/{path.name}: its tables are not those of the results; run this script")
        path.write_text(after, "utf-8")


if __name__ == "__main__":
    main()
