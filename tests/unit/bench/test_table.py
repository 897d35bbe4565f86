"""Results and table from made-up times, so that every figure in them is known."""

import dataclasses
import json

import pytest
import torch

from switchlora.bench import results
from switchlora.bench.contestants import Contestant
from switchlora.bench.counts import Counts
from switchlora.bench.options import BenchOptions
from switchlora.bench.rounds import Record, Rounds
from switchlora.bench.table import tables

FULL, OURS, FUSED = Contestant("full"), Contestant("switchlora", 8), Contestant("switchlora-fused", 8)
PEFT, GALORE = Contestant("peft", 8), Contestant("galore", 8)
ABSENT = Contestant("lora-adapter", 8, "not today")
BYTES = {"weight_bytes": 100, "candidate_host_bytes": 50}
MACHINE = (1.0, 3.0, 1.0, 2.0, 1.0, 1.0)  # how slow it was in each round


def record(share: float, flops: int, switch: float = 0.0, **more) -> Record:
    """Steps of `share` seconds on a quiet machine: a quarter each in forward and optimizer, half in backward."""
    parts = {"forward": share / 4, "backward": share / 2, "optimizer": share / 4 - switch, "switch": switch}
    seconds = [{name: slow * part for name, part in {**parts, "step": share}.items()} for slow in MACHINE]
    return Record(Counts(flops, 0, BYTES), seconds, **more)


STILL = Contestant("switchlora", 8, never_switches=True)


@pytest.fixture
def result() -> dict:
    options = BenchOptions(model="tiny", ranks=8, steps=6, sequences=4, peak_tflops=0.001)
    records = {
        FULL.name: record(1.0, 100),
        OURS.name: record(0.8, 80, switch=0.008, num_switches=12),
        STILL.name: record(0.79, 80, num_switches=0),
        FUSED.name: record(0.9, 80, switch=0.009, num_switches=12),
        PEFT.name: record(1.6, 110),
        GALORE.name: record(1.1, 104, refresh_seconds=[21.1, 21.1, 30.0]),
    }
    rows = [FULL, OURS, STILL, FUSED, PEFT, GALORE, ABSENT]
    peaks = {FULL.name: (1000, ""), OURS.name: (600, "")}
    found = results.head(options, torch.device("cpu"))
    order = [list(records)] * 6
    found["workloads"].append(results.workload(options, 4, rows, Rounds(records, order), peaks))
    return found


def row(result: dict, contestant: Contestant) -> dict:
    (found,) = [row for row in result["workloads"][0]["contestants"] if row["name"] == contestant.name]
    return found


def test_ratios_are_paired(result: dict) -> None:
    ours = row(result, OURS)
    assert ours["ratio_to_full"]["median"] == pytest.approx(0.8)
    assert ours["ratio_to_full"]["p90"] == pytest.approx(0.8), "the machine's moods are no spread"
    assert ours["ratio_to_peft"]["median"] == pytest.approx(0.5)
    assert row(result, FULL)["ratio_to_peft"] is None and row(result, PEFT)["ratio_to_peft"] is None
    assert ours["flops_ratio"] == pytest.approx(0.8)
    assert ours["peak_ratio"] == pytest.approx(0.6)
    assert row(result, PEFT)["peak_bytes"] is None


def test_raw_times_are_kept(result: dict) -> None:
    assert row(result, OURS)["seconds"]["step"] == pytest.approx([0.8 * slow for slow in MACHINE])
    assert json.loads(json.dumps(result)) == result


def test_all_that_switching_costs_is_a_paired_difference(result: dict) -> None:
    """Optimizers of 0.2 s that switches and of 0.1975 s that does not, on a machine that is at times 3 times slower."""
    cost = row(result, OURS)["switching_cost"]
    assert cost["share"]["median"] == cost["share"]["p10"] == pytest.approx(0.0025 / 0.8)
    assert (cost["seconds"]["median"], cost["seconds"]["high"]) == (pytest.approx(0.0025), pytest.approx(0.0075))
    for other in (FULL, STILL, FUSED, PEFT):
        assert row(result, other)["switching_cost"] is None
    ours = next(line for line in tables(result).splitlines() if line.startswith("switchlora r=8  "))
    assert "0.31  0.31 to 0.31" in ours and "all switching %" in tables(result)


def test_galore_is_given_with_and_without_its_decomposition(result: dict) -> None:
    galore = row(result, GALORE)
    plain = 1.1  # the median step
    assert galore["ratio_to_full"]["median"] == pytest.approx(1.1)
    extra = (21.1 - plain) / 200
    assert galore["amortised"]["median_step_seconds"] == pytest.approx(plain + extra)
    assert galore["amortised"]["ratio_to_full"]["median"] > 1.1
    assert row(result, OURS)["amortised"] is None


def test_a_fused_backward_is_one_part_with_the_optimizer(result: dict) -> None:
    parts = row(result, FUSED)["median_seconds"]
    assert parts.keys() == {"forward", "backward_and_optimizer", "switch", "step"}
    assert parts["backward_and_optimizer"] == pytest.approx(0.9 * 0.75 - 0.009)


def test_utilisation_is_of_what_full_rank_needs(result: dict) -> None:
    needed = result["workloads"][0]["full_rank_model_flops"]
    assert row(result, OURS)["model_flop_utilisation"] == pytest.approx(needed / 0.8 / 1e9)


def test_the_table_says_it_all(result: dict) -> None:
    text = tables(result)
    lines = {line.split("  ")[0]: line for line in text.splitlines() if line}
    ours = lines["switchlora r=8"].split()
    assert ours[2] == "0.800" and "1.00" in ours, "the ratio, and the share of switching in per cent"
    assert "(in it)" in lines["switchlora-fused r=8"]
    assert "with 1/200 of its SVD step" in text
    assert "lora-adapter r=8: not today" in text
    assert "MFU %" in text and "MB peak" in text and "95 %" in text and "to peft" in text


def test_columns_without_content_are_left_out() -> None:
    options = BenchOptions(model="tiny", steps=3)
    short = record(1.0, 100)
    short.seconds = short.seconds[:3]
    found = results.head(options, torch.device("cpu"))
    found["workloads"].append(results.workload(options, 4, [FULL], Rounds({FULL.name: short}, []), {}))
    text = tables(found)
    assert not any(title in text for title in ("MFU", "peak", "to peft", "all switching"))
    assert "75 %" in text and "95 %" not in text, "three rounds promise less, and say so"


def test_the_head_says_who_measured_what(result: dict) -> None:
    assert {"format", "command", "date", "machine", "options", "shape"} <= result.keys()
    assert result["options"]["ranks"] == [8] and "peft" in result["machine"]
    assert result["shape"]["hidden_size"] == 128
    assert dataclasses.asdict(OURS).items() <= row(result, OURS).items()
