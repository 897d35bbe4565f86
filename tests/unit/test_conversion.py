"""Which layers are converted, what the report says, what is refused, and the way back."""

import logging

import pytest
import torch
from torch import nn

from switchlora import SwitchLoraConfig, SwitchLoraLinear, UserError, convert, to_dense
from switchlora.conversion import rank_of
from tests.numerics.cases import chain, config_of, start, train


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.output = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)


class Tower(nn.Module):
    """Two blocks and a head that only get_output_embeddings tells."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Attention(), Attention()])
        self.scores = nn.Linear(8, 20)

    def get_output_embeddings(self) -> nn.Module:
        return self.scores


def converted(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, SwitchLoraLinear)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["layers.0.q_proj", "layers.0.k_proj", "layers.1.q_proj", "layers.1.k_proj"]),
        ({"target_modules": ["q_proj"]}, ["layers.0.q_proj", "layers.1.q_proj"]),
        ({"target_modules": ["0.q_proj", "scores"]}, ["layers.0.q_proj", "scores"]),  # a named head is meant
        ({"target_modules": r"layers\.1\..*"}, ["layers.1.q_proj", "layers.1.k_proj", "layers.1.output"]),
        ({"target_modules": ["q_proj"], "exclude_modules": ["1.q_proj"]}, ["layers.0.q_proj"]),
        ({"exclude_modules": r".*\.q_.*"}, ["layers.0.k_proj", "layers.1.k_proj"]),
    ],
)
def test_targets_by_name_ending_and_expression(settings, expected):
    model = Tower()
    report = convert(model, config_of(**settings))
    assert converted(model) == expected
    assert [layer.name for layer in report.converted] == expected
    assert len(report.layers) == 7


def test_an_ending_is_a_whole_name_and_not_a_few_letters():
    with pytest.raises(UserError, match="'proj' matches no linear layer; linear layers here are called k_proj, output"):
        convert(Tower(), config_of(target_modules=["q_proj", "proj"]))


@pytest.mark.parametrize("name", ["lm_head", "embed_out", "output"])
def test_heads_are_known_by_name(name):
    model = nn.ModuleDict({"body": nn.Linear(8, 8), name: nn.Linear(8, 20)})
    convert(model, config_of())
    assert converted(model) == ["body"]
    assert model[name].weight.requires_grad


def test_a_transformers_model_keeps_its_head_and_logits():
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).eval()
    tokens = torch.arange(10).view(1, 10)
    with torch.no_grad():
        before = model(tokens).logits
        report = convert(model, config_of(r=4))
        assert len(report.converted) == 14
        assert type(model.lm_head) is nn.Linear
        assert torch.equal(model(tokens).logits, before)


def test_ranks_by_name():
    config = config_of(r=4, rank_pattern={r"q_proj": 2, r"1\.k_.*": 3})
    assert [rank_of(f"layers.{i}.{name}", config) for i in (0, 1) for name in ("q_proj", "k_proj")] == [2, 4, 2, 3]
    assert rank_of("layers.0.sq_proj", config) == 4  # the end of a dotted name, not of a word
    model = Tower()
    convert(model, config)
    assert (model.layers[0].q_proj.r, model.layers[1].k_proj.r, model.layers[0].k_proj.r) == (2, 3, 4)
    assert model.layers[1].k_proj.scaling == 1 / 3


def test_a_layer_that_is_too_small_stays_a_plain_trainable_linear():
    model = nn.ModuleDict({"small": nn.Linear(4, 100), "large": nn.Linear(9, 9)})
    report = convert(model, config_of(r=4))
    assert converted(model) == ["large"]
    assert type(model["small"]) is nn.Linear
    assert model["small"].weight.requires_grad
    assert "plain: r=4 is not below min(m, n)=4" in str(report)


def test_subclasses_of_linear_are_left():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "body": nn.Linear(8, 8)})
    report = convert(model, config_of())
    assert converted(model) == ["body"]
    assert "a subclass of nn.Linear (NonDynamicallyQuantizableLinear)" in str(report)


def test_a_module_in_several_places_becomes_one_layer_in_all_of_them():
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"first": nn.Sequential(shared), "second": shared, "alias": nn.ModuleList([shared])})
    report = convert(model, config_of())
    assert isinstance(model["second"], SwitchLoraLinear)
    assert model["first"][0] is model["second"] is model["alias"][0]
    assert len(report.converted) == 1
    to_dense(model)
    assert type(model["second"]) is nn.Linear
    assert model["first"][0] is model["second"] is model["alias"][0]


def test_the_report_counts_groups_and_is_logged_once(caplog):
    with caplog.at_level(logging.INFO, "switchlora"):
        report = convert(Tower(), config_of(r=3))
    before, after = 6 * 72 + 8 * 20 + 20, 4 * (8 + 3 * 16) + 2 * 72 + 8 * 20 + 20
    assert (report.num_trainable_before, report.num_trainable) == (before, after)
    lines = str(report).splitlines()
    assert lines[0] == f"4 of 7 linear layers converted; trainable parameters {before} -> {after}"
    assert [line.split()[:2] for line in lines[1:]] == [
        ["2x", "layers.*.q_proj"], ["2x", "layers.*.k_proj"], ["2x", "layers.*.output"], ["1x", "scores"],
    ]  # fmt: skip
    assert lines[1].split()[2:] == ["8x8", "r=3"]
    assert lines[3].endswith("LM head")
    assert [record.getMessage() for record in caplog.records] == [str(report)]


def test_the_report_names_what_is_stacked_and_no_linear_layer():
    model = Tower()
    for layer in model.layers:
        layer.experts = torch.nn.Parameter(torch.zeros(3, 8, 4))
    model.frozen = torch.nn.Parameter(torch.zeros(3, 8, 4), requires_grad=False)
    report = convert(model, config_of(r=3))
    assert report.stacked == tuple((f"layers.{i}.experts", (3, 8, 4)) for i in range(len(model.layers)))
    last = str(report).splitlines()[-1]
    assert last.split()[:3] == [f"{len(model.layers)}x", "layers.*.experts", "3x8x4"]
    assert last.endswith("no linear layer: trains in full")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_weights_change_hands_without_a_copy_both_ways(dtype):
    model = chain(dtype=dtype)
    pointers = {name: p.data_ptr() for name, p in model.named_parameters()}
    keys, values = list(model.state_dict()), {k: v.clone() for k, v in model.state_dict().items()}
    biases = [model[0].bias, model[2].bias]
    convert(model, config_of())
    assert [model[0].bias, model[2].bias] == biases
    assert {n: p.data_ptr() for n, p in model.named_parameters() if "lora_" not in n} == pointers
    assert set(model.state_dict()) == {*keys, "0.lora_A", "0.lora_B", "2.lora_A", "2.lora_B"}
    assert to_dense(model) is model
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == pointers
    assert list(model.state_dict()) == keys
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())
    assert all(type(module) is not SwitchLoraLinear for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_a_trained_model_s_logits_survive_bitwise_and_it_trains_on_in_full():
    model, optimizer = start(config_of())
    train(model, optimizer, 20)
    x = torch.randn(5, 7)
    before = model(x)
    to_dense(model)
    assert torch.equal(model(x), before)
    train(model, torch.optim.AdamW(model.parameters()), 1)
    assert not torch.equal(model(x), before)


@pytest.mark.parametrize("training", [True, False])
def test_train_and_eval_mode_are_kept_and_write_nothing(training):
    model = chain().train(training)
    convert(model, config_of())
    assert model[0].training is training
    weight = model[0].weight.clone()
    model.eval().train()
    assert torch.equal(model[0].weight, weight)
    model.train(training)
    to_dense(model)
    assert model[0].training is training


def test_a_model_can_be_converted_again_after_to_dense():
    model = chain()
    convert(model, config_of())
    with pytest.raises(UserError, match="converted already"):
        convert(model, config_of())
    to_dense(model)
    convert(model, config_of(r=2))
    assert model[0].r == 2


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (Tower(), {"target_modules": ["q_porj"]}, "'q_porj' matches no linear.* here are called k_proj"),
        (Tower(), {"target_modules": "q_proj"}, "'q_proj' matches no linear layer"),
        (Tower(), {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"]}, "matches nothing"),
        (Tower(), {"r": 8}, "r=8: is not below min.* use r < 8"),
        (Tower(), {"r": 999}, "r=999"),
        (nn.Sequential(nn.Tanh()), {}, "the model has no linear layer"),
        (nn.Sequential(nn.Linear(8, 8, dtype=torch.float16)), {}, "float16"),
        (nn.Linear(8, 8), {}, "nn.Sequential"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_line_and_nothing_is_changed(model, settings, message):
    before = [(name, type(module)) for name, module in model.named_modules()]
    with pytest.raises(UserError, match=message) as error:
        convert(model, config_of(**settings))
    assert "\n" not in str(error.value)
    assert [(name, type(module)) for name, module in model.named_modules()] == before


def test_tied_weights_are_refused_unless_excluded():
    model = nn.ModuleDict({"embed": nn.Embedding(20, 8), "body": nn.Linear(8, 8), "decoder": nn.Linear(8, 20)})
    model["decoder"].weight = model["embed"].weight
    with pytest.raises(UserError, match=r"decoder is shared with embed.*exclude_modules=\['decoder'\]"):
        convert(model, config_of())
    assert converted(model) == []
    convert(model, config_of(exclude_modules=["decoder"]))
    assert converted(model) == ["body"]
    assert model["decoder"].weight is model["embed"].weight


def test_to_dense_of_a_bare_layer_says_what_to_do():
    layer = SwitchLoraLinear(8, 8, r=2)
    with pytest.raises(UserError, match=r"nn\.Sequential"):
        to_dense(layer)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"exclude_modules": ["typo"]}, "exclude_modules: 'typo' matches no linear layer"),
        ({"exclude_modules": "typo.*"}, "exclude_modules: 'typo"),
        ({"rank_pattern": {"typo": 2}}, "rank_pattern: 'typo' matches no linear layer"),
    ],
)
def test_names_that_match_nothing_are_refused_wherever_they_stand(values, words):
    with pytest.raises(UserError, match=words):
        convert(nn.Sequential(nn.Linear(8, 8)), SwitchLoraConfig(r=2, **values))


def test_frozen_layers_stay_frozen_and_the_report_says_so():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    report = convert(model, SwitchLoraConfig(r=2))
    assert type(model[0]) is nn.Linear and not model[0].weight.requires_grad
    assert "frozen" in str(report)


@pytest.mark.parametrize("register", [
    lambda layer: layer.register_forward_hook(lambda *_: None),
    lambda layer: layer.register_full_backward_hook(lambda *_: None),
    lambda layer: layer.weight.register_hook(lambda gradient: gradient),
    lambda layer: layer.weight.register_post_accumulate_grad_hook(lambda parameter: None),
], ids=["forward", "backward", "gradient", "accumulated"])  # fmt: skip
def test_hooks_would_be_lost_and_are_refused(register):
    model = nn.Sequential(nn.Linear(8, 8))
    register(model[0])
    with pytest.raises(UserError, match="0 has hooks"):
        convert(model, SwitchLoraConfig(r=2))


def test_on_the_way_back_they_are_dropped_and_named(caplog):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    convert(model, SwitchLoraConfig(r=2))
    model[1].register_forward_hook(lambda *_: None)
    to_dense(model)
    assert "drops the hooks of 1 layers, such as 1" in caplog.text


def test_float16_is_refused_only_where_it_would_be_trained():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).half())
    with pytest.raises(UserError, match="1 is float16"):
        convert(model, SwitchLoraConfig(r=2))
    assert len(convert(model, SwitchLoraConfig(r=2, target_modules=["0"])).converted) == 1
