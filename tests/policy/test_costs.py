"""What the pages on FLOPs, time, memory and bfloat16 quote is what the files say, digit by digit."""

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from benchmarks import flops, held, roofline
from switchlora.compare.statistics import paired_difference
from tests.policy.source import REPOSITORY

RESULTS = REPOSITORY / "experiments/bf16/results"
SEEDS = (0, 1, 2)
STORED = {
    "fp32": "fp32: everything float32",
    "bf16": "bf16: weights and ordinary parameters bf16",
    "bf16-all": "bf16-all: also factors, candidates and both moments",
    "nearest": "nearest: as bf16, rounded to nearest",
    "nearest-all": "nearest-all: as bf16-all, rounded to nearest",
}


def page(name: str) -> str:
    return (REPOSITORY / "docs" / name).read_text("utf-8")


def record(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8")))


def contestants(name: str) -> dict[str, dict[str, Any]]:
    """The rows of the only workload of benchmarks/NAME.json, by name."""
    (workload,) = record(REPOSITORY / "benchmarks" / f"{name}.json")["workloads"]
    return {row["name"]: row for row in workload["contestants"]}


def interval(found: dict[str, float]) -> str:
    return f"{found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def lines_with(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_flops_has_every_row() -> None:
    counted = record(flops.OUTPUT)
    assert flops.table(counted["rows"]) in page("flops.md")
    assert flops.limits_table(counted["limits"]) in page("flops.md")


def test_the_short_table_of_flops() -> None:
    rows = {(row["shape"], row["rank"]): row for row in record(flops.OUTPUT)["rows"]}
    for name, shape in flops.SHAPES.items():
        chosen = [rows[name, rank] for rank in ("h/8", "h/4")]
        cells = [f"{row[which]:.3f}" for which in ("ratio", "adapter_branch_ratio") for row in chosen]
        assert f"| {name} | {shape.hidden_size} | {' | '.join(cells)} |" in page("performance.md")


def test_what_is_expected_on_an_accelerator() -> None:
    assert roofline.table(record(roofline.OUTPUT)["rows"]) in page("cuda.md")


def test_what_every_method_holds() -> None:
    assert held.table(record(held.OUTPUT)["rows"]) in page("performance.md")


@pytest.mark.parametrize("sequences", [4, 16])
def test_step_times(sequences: int) -> None:
    rows = contestants(f"cpu-{sequences}-sequences")
    text = page("performance.md").splitlines()
    for r in (64, 128):
        at = next(i for i, line in enumerate(text) if line.startswith(f"| {sequences} sequences, r = {r} |"))
        for line, method in zip(text[at:], ("switchlora", "switchlora-alternate"), strict=False):
            row = rows[f"{method} r={r}"]
            cells = [cell.strip() for cell in line.split("|")[2:-1]]
            assert cells[0] == interval(row["ratio_to_full"])
            assert cells[2] == f"{row['flops_ratio']:.3f}"
            assert cells[3] == interval(row["ratio_to_peft"])


def test_all_methods_side_by_side() -> None:
    names = {
        "switchlora": "switchlora",
        "switchlora-alternate": "switchlora, `alternate`",
        "switchlora-dense": "switchlora, dense gradients by force",
        "switchlora-fused": "switchlora, `fused_backward`",
        "lora-adapter": "LoRA, adapter branch",
        "peft": "PEFT LoRA",
        "galore": "GaLore (galore-torch), decompositions included",
    }
    rows = contestants("cpu")
    for method, name in names.items():
        chosen = [rows[f"{method} r={r}"] for r in (64, 128)]
        found = [(row["amortised"] or row)["ratio_to_full"] for row in chosen]
        assert f"| {name} | {' | '.join(map(interval, found))} |" in page("performance.md")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        ("| full AdamW |", "full"),
        ("| switchlora, r = 64 |", "switchlora r=64"),
        ("| switchlora, r = 128 |", "switchlora r=128"),
        ("| LoRA (ours and PEFT's), r = 64 |", "lora-adapter r=64"),
        ("| LoRA, r = 128 |", "lora-adapter r=128"),
        ("| GaLore, r = 64 |", "galore r=64"),
        ("| GaLore, r = 128 |", "galore r=128"),
    ],
)
def test_memory_and_peaks(start: str, name: str) -> None:
    row = contestants("cpu")[name]
    held_bytes = row["bytes"]
    on_device = [held_bytes[f"{kind}_bytes"] for kind in ("weight", "gradient", "optimizer_device")]
    cells = [*(f"{each / 1e6:.1f}" for each in on_device), f"{sum(on_device) / 1e6:.1f}"]
    (line,) = [line for line in lines_with(page("performance.md"), start) if "1.000" not in line]
    assert line.startswith(f"{start} {' | '.join(cells)} |")
    assert f"{row['peak_bytes'] / 1e6:.0f}" in line.split("|")[-2]


def losses(mode: str) -> dict[int, float]:
    return {seed: record(RESULTS / f"{mode}-seed{seed}.json")["validation_loss"] for seed in SEEDS}


@pytest.mark.parametrize("mode", STORED)
def test_bfloat16(mode: str) -> None:
    own = losses(mode)
    found = paired_difference(own, losses("fp32"))
    minus = "–" if mode == "fp32" else f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
    values = list(own.values())
    cells = (*(f"{loss:.4f}" for loss in values), f"{fmean(values):.3f} ± {stdev(values):.3f}", minus)
    assert f"| {STORED[mode]} | {' | '.join(cells)} |" in page("evidence/bf16.md")


def readme_costs() -> str:
    return (REPOSITORY / "README.md").read_text("utf-8").split("## What it costs", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize(("sequences", "name"), [(16, "cpu-16-sequences"), (4, "cpu-4-sequences")])
def test_readme_quotes_the_steps(sequences: int, name: str) -> None:
    rows, text = contestants(name), readme_costs()
    for who, method in (
        ("SwitchLoRA", "switchlora"), ("SwitchLoRA, `--alternate`", "switchlora-alternate"), ("PEFT's LoRA", "peft")
    ):  # fmt: skip
        medians = [f"{rows[f'{method} r={r}']['ratio_to_full']['median']:.2f}" for r in (64, 128)]
        assert f"| {sequences} sequences: {who} | {' | '.join(medians)} |" in text


def test_readme_quotes_the_memory() -> None:
    rows, text = contestants("cpu"), readme_costs()
    ours = [rows[f"switchlora r={r}"] for r in (64, 128)]
    full, galore = rows["full"], [rows[f"galore r={r}"] for r in (64, 128)]
    kinds = ("weight", "gradient", "optimizer_device")
    totals = [f"{sum(row['bytes'][f'{kind}_bytes'] for kind in kinds) / 1e6:.0f}" for row in (full, *ours)]
    peaks = [f"{row['peak_bytes'] / 1e6:.0f}" for row in (full, *galore, *ours)]
    pools = [f"{row['bytes']['candidate_host_bytes'] / 1e6:.0f}" for row in ours]
    times = [f"{(row['amortised'] or row)['ratio_to_full']['median']:.2f}" for row in galore]
    for start, end in (
        (f"| MB of weights, gradients and optimizer state (full rank: {totals[0]})", totals[1:]),
        ("| MB of candidates, in host memory", pools),
        (f"| MB at the peak, as measured (full rank: {peaks[0]}; GaLore: {peaks[1]} and {peaks[2]})", peaks[3:]),
        ("| 4 sequences: GaLore", times),
    ):
        (line,) = lines_with(text, start)
        assert line.endswith(f"| {' | '.join(end)} |")


def test_readme_quotes_what_is_held_at_scale() -> None:
    counted = {
        (row["options"]["method"], row["options"].get("r"), "factor_dtype" in row["options"]): sum(
            row[f"{kind}_bytes"] for kind in ("weight", "gradient", "optimizer")
        )
        for row in record(held.OUTPUT)["rows"]
    }
    keys = [
        ("full", None, False), ("8-bit AdamW, by formula", None, False), ("muon", None, False),
        ("galore", "512", False), ("apollo-mini", None, False),
        *(("switchlora", r, narrow) for r in ("512", "256") for narrow in (False, True)),
    ]  # fmt: skip
    GB = [f"{counted[key] / 1e9:.2f}" for key in keys]
    assert f"| default formats | {' | '.join(GB[:5])} | {GB[5]} | {GB[7]} |" in readme_costs()
    assert f"| factors and moments bfloat16 | | | | | | {GB[6]} | {GB[8]} |" in readme_costs()
