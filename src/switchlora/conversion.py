"""Swap the linear layers of a model for SwitchLoRA layers, and back.

One walk over the module tree. It says what it matched and what it left, and refuses to match nothing: a
target that is spelt wrong would otherwise train a frozen model without a word. Weights change hands, they
are never copied or computed with, so the model's function and its memory for weights stay as they were; only
GPT-2's Conv1D has its weight transposed (`conv1d`), and transposed back at the end.
"""

import dataclasses
import logging
import re
from collections.abc import Iterator

import torch
from torch import nn

from switchlora.config import SwitchLoraConfig, TargetModules
from switchlora.conv1d import conv1d_of, is_conv1d, linear_of, linear_shape
from switchlora.errors import UserError
from switchlora.layer import SwitchLoraLinear

logger = logging.getLogger("switchlora")

FACTOR_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
HEAD_NAMES = ("lm_head", "embed_out", "output")


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One linear layer: its name, shape (m, n), the rank it got (None: none), and why if it got none."""

    name: str
    out_features: int
    in_features: int
    r: int | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What `convert` did: `layers` holds every linear layer, the counts are of parameters.

    stacked: name and shape of trainable parameters with three dimensions or more, such as the experts of a mixture or a
    convolution: no linear layers, so they train in full.
    """

    layers: tuple[LayerReport, ...]
    num_trainable_before: int
    num_trainable: int
    stacked: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def converted(self) -> tuple[LayerReport, ...]:
        """The layers that became SwitchLoraLinear."""
        return tuple(layer for layer in self.layers if layer.r is not None)

    def __str__(self) -> str:
        groups: dict[tuple[str, ...], int] = {}
        entries: list[tuple[str, tuple[int, ...], str]] = [
            (layer.name, (layer.out_features, layer.in_features), layer.reason if layer.r is None else f"r={layer.r}")
            for layer in self.layers
        ]
        entries += [(name, shape, "no linear layer: trains in full") for name, shape in self.stacked]
        for name, shape, what in entries:
            row = (re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name), "x".join(map(str, shape)), what)
            groups[row] = groups.get(row, 0) + 1
        rows = [(f"{count}x", *row) for row, count in groups.items()]
        widths = [max(len(row[i]) for row in rows) for i in range(4)] if rows else []
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        total = (
            f"{len(self.converted)} of {len(self.layers)} linear layers converted; trainable parameters "
            f"{self.num_trainable_before:,} -> {self.num_trainable:,}"
        )
        return "\n".join([total, *table])


def check_arguments(model: object, config: object) -> None:
    """Refuse what is no model, and what is no configuration.

    Raises:
        UserError: says what it is, and what to give.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model is of type {type(model).__name__}: give the torch.nn.Module itself, not its parameters")
    if not isinstance(config, SwitchLoraConfig):
        raise UserError(
            f"config is of type {type(config).__name__}: give a SwitchLoraConfig, such as SwitchLoraConfig(r=16), or "
            "SwitchLoraConfig.from_dict(...) of plain values"
        )


def convert(model: nn.Module, config: SwitchLoraConfig, *, factor_dtype: torch.dtype | None = None) -> ConversionReport:
    """Replace the matched linear layers of `model` by `SwitchLoraLinear`, in place.

    Only exact nn.Linear modules and transformers' Conv1D are taken (a subclass may do something else with its weight),
    and only those whose weight requires a gradient. A layer with r >= min(m, n) has nothing to switch to and stays a
    plain trainable linear.
    A module that is used in several places is replaced in all of them by one layer. A layer whose weight the model
    reads by itself, without calling it (Mamba's dt_proj), gets no gradients there: exclude it.

    Args:
        model: any module, also on the meta device.
        config: which layers, at which rank.
        factor_dtype: dtype of A and B; by default the weight's, but float32 beside bfloat16 weights.

    Returns:
        what matched and what did not; logged once at level INFO.

    Raises:
        UserError: (a ValueError) no model or no configuration, factor_dtype is no format for factors, a name matches
            nothing, every rank is too large, a matched layer is float16, has hooks or shares its weight with another
            module, or the model is converted already.
    """
    check_arguments(model, config)
    if factor_dtype not in (None, *FACTOR_DTYPES):
        raise UserError(f"factor_dtype={factor_dtype!r}: must be {' or '.join(map(str, FACTOR_DTYPES))}, or None")
    _refuse_what_cannot_be_converted(model)
    head = _output_head(model)
    num_trainable_before = _num_trainable(model)
    reports: list[LayerReport] = []
    replacements: dict[nn.Module, nn.Module] = {}
    for name, linear in _linears(model):
        reason = _reason_to_leave(name, linear, config, head)
        r = rank_of(name, config)
        m, n = linear_shape(linear)
        if not reason and r >= min(m, n):
            reason = f"plain: r={r} is not below min(m, n)={min(m, n)}"
        reports.append(LayerReport(name, m, n, None if reason else r, reason))
        if not reason:
            _refuse_unsuitable(name, linear)
            _refuse_shared_weight(model, name, linear)
            replacements[linear] = layer = SwitchLoraLinear.from_linear(
                linear_of(linear) if is_conv1d(linear) else linear,
                r=r, lora_alpha=config.lora_alpha, init_lora_weights=config.init_lora_weights,
                factor_dtype=factor_dtype, name=name, seed=config.seed,
            )  # fmt: skip
            layer.was_conv1d = is_conv1d(linear)
            if config.polar:
                layer.train_weight()
    _refuse_no_match(reports, config)
    replace_modules(model, replacements)
    stacked = ((name, tuple(p.shape)) for name, p in model.named_parameters() if p.dim() > 2 and p.requires_grad)
    report = ConversionReport(tuple(reports), num_trainable_before, _num_trainable(model), tuple(stacked))
    logger.info("%s", report)
    return report


def to_dense(model: nn.Module) -> nn.Module:
    """Turn every `SwitchLoraLinear` of `model` into the plain, trainable nn.Linear or Conv1D that it was, in place.

    No arithmetic: the weight is the effective one already; A and B are dropped.

    Returns:
        model.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    for layer in model.modules():
        if isinstance(layer, SwitchLoraLinear):
            dense = nn.Linear(layer.in_features, layer.out_features, False, device="meta", dtype=layer.weight.dtype)
            dense.weight = nn.Parameter(layer.weight.detach())
            dense.bias = layer.bias
            dense.train(layer.training)
            replacements[layer] = conv1d_of(dense) if layer.was_conv1d else dense
    if model in replacements:
        raise UserError("the model itself is one layer; put it into an nn.Sequential to convert it back in place")
    if hooked := [layer.name for layer in replacements if isinstance(layer, SwitchLoraLinear) and _has_hooks(layer)]:
        logger.warning("to_dense drops the hooks of %d layers, such as %s", len(hooked), hooked[0])
    replace_modules(model, replacements)
    return model


def hidden_linears(model: nn.Module) -> list[nn.Linear]:
    """Every linear layer of a model but the LM head: what target_modules="all-linear" means. Of a Conv1D, which is
    among them, the weight lies transposed."""
    head = _output_head(model)
    return [linear for name, linear in _linears(model) if not _is_head(name, linear, head)]


def rank_of(name: str, config: SwitchLoraConfig) -> int:
    """The rank of a layer: the first entry of rank_pattern that matches the end of its name, else r."""
    return next((r for pattern, r in config.rank_pattern.items() if _matches_end(name, pattern)), config.r)


def matches(name: str, targets: TargetModules) -> bool:
    """Whether a module name matches: a regular expression wholly, or one of a list of endings."""
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith("." + target) for target in targets)


def _matches_end(name: str, pattern: str) -> bool:
    return re.fullmatch(rf"(.*\.)?({pattern})", name) is not None


def _alternatives(targets: TargetModules | None) -> list[TargetModules]:
    """What must match something each: every ending of a list, or the one regular expression."""
    if targets is None or targets == "all-linear":
        return []
    return [targets] if isinstance(targets, str) else [(ending,) for ending in targets]


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or is_conv1d(module):
            yield name, module


def _reason_to_leave(name: str, linear: nn.Linear, config: SwitchLoraConfig, head: nn.Module | None) -> str:
    """Why a linear layer is not converted, or "" if it is."""
    targets = config.target_modules
    if config.exclude_modules is not None and matches(name, config.exclude_modules):
        return "excluded"
    if targets == "all-linear":
        if _is_head(name, linear, head):
            return "LM head"
    elif not matches(name, targets):
        return "no target"
    if type(linear) is not nn.Linear and not is_conv1d(linear):
        return f"a subclass of nn.Linear ({type(linear).__name__})"
    if not linear.weight.requires_grad:
        return "frozen (requires_grad=False)"
    return ""


def _is_head(name: str, linear: nn.Linear, head: nn.Module | None) -> bool:
    return linear is head or name.rpartition(".")[2] in HEAD_NAMES


def _output_head(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    return head if isinstance(head, nn.Module) else None


def _refuse_what_cannot_be_converted(model: nn.Module) -> None:
    if type(model) is nn.Linear:
        raise UserError(
            "the model itself is an nn.Linear and cannot be replaced in place; put it into an nn.Sequential"
        )
    for name, module in model.named_modules():
        if isinstance(module, SwitchLoraLinear):
            raise UserError(f"the model is converted already ({name or 'itself'}); call to_dense(model) first")


def _refuse_no_match(reports: list[LayerReport], config: SwitchLoraConfig) -> None:
    names = [report.name for report in reports]
    kinds = sorted({name.rpartition(".")[2] for name in names})
    known = f"linear layers here are called {', '.join(kinds)}" if kinds else "the model has no linear layer"
    targets = config.target_modules
    for field, value in (("target_modules", targets), ("exclude_modules", config.exclude_modules)):
        for wanted in _alternatives(value):
            if not any(matches(name, wanted) for name in names):
                shown = wanted if isinstance(wanted, str) else wanted[0]
                raise UserError(f"{field}: {shown!r} matches no linear layer; {known}")
    for pattern in config.rank_pattern:
        if not any(_matches_end(name, pattern) for name in names):
            raise UserError(f"rank_pattern: {pattern!r} matches no linear layer; {known}")
    if any(report.r is not None for report in reports):
        return
    too_large = [report for report in reports if report.reason.startswith("plain")]
    if too_large:
        least = max(min(report.out_features, report.in_features) for report in too_large)
        raise UserError(
            f"r={config.r}: is not below min(m, n) of any matched layer, so nothing can switch; use r < {least}"
        )
    left = "; ".join(sorted({f"{report.name}: {report.reason}" for report in reports})[:3])
    raise UserError(f"target_modules={targets!r} matches nothing that can be converted ({left or known})")


def _refuse_unsuitable(name: str, linear: nn.Linear) -> None:
    if linear.weight.dtype == torch.float16:
        raise UserError(f"the weight of {name} is float16, which training overflows; use bfloat16 or float32")
    if _has_hooks(linear) or linear.weight._backward_hooks or linear.weight._post_accumulate_grad_hooks:
        raise UserError(f"{name} has hooks, which its replacement would not run; register them after convert")


def _has_hooks(linear: nn.Linear) -> bool:
    return any((linear._forward_hooks, linear._forward_pre_hooks, linear._backward_hooks, linear._backward_pre_hooks))


def _refuse_shared_weight(model: nn.Module, name: str, linear: nn.Linear) -> None:
    for other_name, module in model.named_modules():
        if module is not linear and any(p is linear.weight for p in module._parameters.values()):
            raise UserError(
                f"the weight of {name} is shared with {other_name}, which would go on training it in full; "
                f"exclude it: exclude_modules=[{name!r}]"
            )


def replace_modules(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Put other modules in the places of some, in place, wherever in `model` these stand."""
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if child in replacements:
                setattr(parent, child_name, replacements[child])


def _num_trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
