"""Which runs a comparison takes, and in which order."""

import math

import pytest

from switchlora.cli import COMMANDS, parse_flags
from switchlora.compare.options import CompareOptions
from switchlora.compare.plan import make_plan
from switchlora.errors import UserError
from tests.option_tables import assert_page_has_every_option
from tests.unit.compare.records import finish

PRETRAIN = {"model": "tiny", "steps": 100}


def plan_of(**values):
    return make_plan(CompareOptions(**{"pretrain": PRETRAIN, "tune": False, **values}))


def bowl(run):
    return math.log(run.lr / 0.01) ** 2 + math.log(run.other_lr / 0.02) ** 2 + run.seed * 1e-6


def test_methods_by_ranks_by_rates_by_seeds():
    plan = plan_of(
        methods={"full": {"lr": [1e-3, 2e-3], "other_lr": 1e-2}, "switchlora": {}}, ranks=(8, 16), seeds=(0, 1, 2)
    )
    assert [contender.name for contender in plan.contenders] == ["full", "switchlora r=8", "switchlora r=16"]
    assert len(plan.ready({})) == 2 * 3 + 2 * 3
    assert len({run.id for run in plan.ready({})}) == 12


def test_runs_of_one_seed_come_before_those_of_the_next():
    seeds = [run.seed for run in plan_of(methods=("full", "lora"), seeds=(5, 3)).ready({})]
    assert seeds == [5, 5, 3, 3]


def test_all_runs_share_what_makes_batches_identical():
    """Model, data, batch size, length and schedule are the same for every method; only the seed says which batches."""
    plan = plan_of(methods=("full", "switchlora", "relora"), seeds=(0, 1))
    shared = (
        "model",
        "data",
        "tokenizer",
        "batch_size",
        "seq_len",
        "steps",
        "warmup",
        "schedule",
        "clip",
        "eval_tokens",
    )
    assert len({tuple(getattr(run.options(), name) for name in shared) for run in plan.ready({})}) == 1


def test_every_method_and_rank_gets_a_search_of_its_own():
    plan = plan_of(tune=True, methods=("full", "switchlora"), ranks=(8, 16), tune_steps=30, tune_seed=9)
    first = plan.ready({})
    assert {(run.contender.name, run.seed, run.steps) for run in first} == {
        ("full", 9, 30), ("switchlora r=8", 9, 30), ("switchlora r=16", 9, 30)
    }  # fmt: skip
    records = finish(plan, bowl)
    losses = {id: record["validation_loss"] for id, record in records.items()}
    for contender in plan.contenders:
        assert plan.search_of(contender, losses).confirmed
        (pair,) = plan.winners(contender, losses)
        finals = plan.final_runs(contender, losses)
        assert {(run.lr, run.other_lr) for run in finals} == {pair}
        assert {(run.seed, run.steps) for run in finals} == {(0, 100), (1, 100), (2, 100)}
        assert all(run.id in losses for run in finals)


def test_searches_advance_side_by_side():
    """So that a comparison which is interrupted has not tuned one method to the end and another not at all."""
    plan = plan_of(tune=True, methods=("full", "lora", "switchlora"))
    tried = [record["label"] for record in finish(plan, bowl, limit=15).values()]
    counts = [tried.count(label) for label in ("full", "lora", "switchlora")]
    assert max(counts) - min(counts) <= 4  # the neighbours of one point


def test_tune_rank_searches_at_one_rank_for_all():
    plan = plan_of(tune=True, methods=("full", "switchlora"), ranks=(8, 16), tune_rank=16)
    records = finish(plan, bowl)
    searched = {record["r"] for record in records.values() if record["seed"] == 1000}
    assert searched == {None, 16}
    finals = {
        (record["r"], record["lr"], record["other_lr"]) for record in records.values() if record["label"] != "full"
    }
    assert len({rates for r, *rates in map(list, finals) for rates in [tuple(rates)] if r == 8}) == 1


def test_an_interrupted_comparison_does_what_an_undisturbed_one_would():
    plan = plan_of(tune=True, methods=("full", "switchlora"))
    whole = finish(plan, bowl)
    losses = {id: record["validation_loss"] for id, record in list(whole.items())[:7]}
    rest = []
    while ready := plan.ready(losses):
        rest.append(ready[0].id)
        losses[ready[0].id] = bowl(ready[0])
    assert rest == list(whole)[7:]


def test_labels_of_ones_own():
    plan = plan_of(methods={"fresh": {"method": "switchlora", "candidates": "fresh", "r": [4, 8]}})
    assert [contender.name for contender in plan.contenders] == ["fresh r=4", "fresh r=8"]
    assert plan.ready({})[0].options().candidates == "fresh"
    assert plan.ready({})[0].id.startswith("fresh-r4-lr0.02-other0.02-seed0-100steps")


def test_what_only_short_runs_refuse_is_no_mistake():
    plan = plan_of(methods={"relora": {"warm_start_steps": 20}}, pretrain={**PRETRAIN, "warmup": 50})
    assert plan.first_run(plan.contenders[0]).options().warmup == 50


def test_tied_rates():
    plan = plan_of(tune=True, methods={"full": {"lr": 0.01, "other_lr": "tied"}})
    records = finish(plan, bowl)
    assert all(record["lr"] == record["other_lr"] for record in records.values())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"methods": ("fulll",)}, ["--methods", "did you mean full?"]),
        ({"methods": {"mine": {}}}, ["'method: NAME'"]),
        ({"methods": {"mine": {"method": "swichlora"}}}, ["did you mean switchlora?"]),
        ({"methods": {"full": {"sed": 3}}}, ["full", "sed"]),
        ({"methods": {"full": {"seed": 3}}}, ["seed is set for every run", "--seeds"]),
        ({"methods": {"full": {"steps": 3}}}, ["steps must be the same for all"]),
        ({"methods": {"full": {"lr": -1}}}, ["full", "lr -1", "above 0"]),
        ({"methods": {"full": 3}}, ["option: value"]),
        ({"methods": {"a/b": {"method": "full"}}}, ["must hold no /"]),
        ({"pretrain": {"stepps": 3}}, ["--pretrain: unknown option stepps", "did you mean steps?"]),
        ({"pretrain": {"r": 4}}, ["--pretrain r", "--ranks"]),
        ({"pretrain": ("steps=20", "steps=30")}, ["--pretrain", "twice"]),
        ({"methods": None}, ["--methods", "at least one"]),
        ({"methods": {"full": {"lr": [0.002, 0.0020000001]}}}, ["full", "lr", "same in six digits"]),
        ({"methods": {"relora": {"restart_every": 200}}}, ["relora", "--restart-every 200", "never restart in 100"]),
        ({"pretrain": {"seed": 3}}, ["--pretrain seed", "--seeds"]),
        ({"pretrain": {"method": "full"}}, ["--methods"]),
        ({"pretrain": {"model": "tinny"}}, ["did you mean tiny?"]),
        ({"baseline": "fulll"}, ["--baseline fulll", "did you mean full?"]),
        ({"ranks": (8, 16), "tune_rank": 32}, ["--tune-rank 32", "8 16"]),
        ({"ranks": (128,)}, ["lora", "128"]),
        ({"methods": {"a b": {"method": "full"}, "a-b": {"method": "full"}}}, ["would write the same files"]),
        ({"methods": {"lora": {"r": [8, 8]}}}, ["lora", "r", "twice"]),
        ({"methods": {"lora": {"r": []}}}, ["lora", "at least one"]),
        ({"methods": {"full": {"r": 8}}}, ["r has no use with full"]),
        ({"methods": {"full": {"output": "x"}}}, ["output is set for every run", "--output"]),
        ({"methods": {"full": {"eval_tokens": 5}}}, ["eval_tokens must be the same for all"]),
        ({"methods": {"full": {"tokenizer": "train:300"}}}, ["tokenizer must be the same for all"]),
        ({"methods": {"x" * 300: {"method": "full"}}}, ["becomes the name of a file"]),
        ({"methods": ("lora",), "tune_rank": 7}, ["--tune-rank 7", "lora runs at 32 only"]),
        ({"tune_factor": 1.01}, ["--tune-factor 1.01", "at least 1.05"]),
        ({"methods": {"full": {"lr": [0.1, 0.2], "other_lr": [0.1, 0.2]}}, "tune": True, "tune_runs": 3}, ["4 pairs"]),
        ({"seeds": (0, 0)}, ["--seeds", "twice"]),
        ({"tune": True, "seeds": (0, 7), "tune_seed": 7}, ["--tune-seed 7", "one of --seeds", "--no-tune"]),
        ({"tune": True, "tune_steps": 5, "pretrain": {**PRETRAIN, "warmup": 50}}, ["--tune-steps 5", "--warmup 50"]),
    ],
    ids=str,
)
def test_mistakes_are_told_before_anything_runs(values, words):
    with pytest.raises(UserError) as refused:
        plan_of(**values)
    message = str(refused.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_reference_page_has_every_option_as_the_code_has_it():
    assert_page_has_every_option("compare.md", CompareOptions)


def test_flags_take_several_words():
    words = ["--methods", "full", "switchlora", "--pretrain", "steps=7", "model=tiny", "--no-tune", "--seeds", "3", "4"]
    options = parse_flags("compare", COMMANDS["compare"], words)
    assert isinstance(options, CompareOptions)
    assert [run.steps for run in make_plan(options).ready({})] == [7] * 4


def test_words_on_the_command_line_are_options_of_pretrain():
    options = CompareOptions(pretrain=("steps=1e2", "model=tiny", "compile=false", "data=a.txt,b.txt"))
    assert make_plan(options).ready({})[0].options().data == ("a.txt", "b.txt")
    assert make_plan(options).steps == 100
