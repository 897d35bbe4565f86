"""Options as data: one declaration gives the flag, the YAML key, the check, the help text and the row in
docs/.

A command's options are a frozen dataclass whose fields are made by `option(...)`. Whatever the source (flags,
YAML, Python), the values are checked in the constructor, so an `Options` object that exists is one whose
every field is valid. Layers are merged *before* they are checked as a whole, so that a flag can mend what a
YAML file has wrong.

Costs nothing to import: no torch, and PyYAML only when a file is read or written.
"""

import dataclasses
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from switchlora.errors import UserError
from switchlora.options.values import Parser, Refused, nearest, show

if TYPE_CHECKING:
    import yaml

MUST_BE_GIVEN = "must be given"  # the default of an option that has none
OnResume = Literal["same", "reported", "free"]
# What a YAML file may write without quotes and mean a number. 1e-3 is not among them, but our parsers take it as text.
WHOLE_NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)$")
DECIMAL_NUMBER = re.compile(
    r"[-+]?((0|[1-9]\d*)\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
)


@dataclass(frozen=True)
class Spec:
    """What is known about an option besides its default. `default` is text, for people."""

    parse: Parser
    group: str
    help: str
    metavar: str
    default: str
    choices: tuple[str, ...]
    optional: bool
    on_resume: OnResume


def option(
    default: object,
    parse: Parser,
    group: str,
    help: str,
    *,
    metavar: str = "",
    unset: str = "",
    choices: tuple[str, ...] = (),
    on_resume: OnResume = "same",
) -> Any:
    """A dataclass field. `metavar` is the unit; `unset` says what None, the default, stands for."""
    several = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
    shown = unset or (
        "on" if default is True else "off" if default is False else "none" if default in (None, ()) else several
    )
    spec = Spec(parse, group, help, metavar or "|".join(choices), shown, choices, bool(unset), on_resume)
    return dataclasses.field(default=default, metadata={"spec": spec})


def flag(name: str) -> str:
    """The command-line name of a field."""
    return "--" + name.replace("_", "-")


def parse_value(name: str, spec: Spec, value: object) -> Any:
    """The clean value of option `name`.

    Raises:
        UserError: names the flag, the value, the rule and the way out.
    """
    if value is None and spec.optional:
        return None
    try:
        return spec.parse(value)
    except Refused as rule:
        shown = " ".join(map(str, value)) if isinstance(value, list | tuple | Mapping) else value
        way_out = (
            "" if spec.choices or spec.default == MUST_BE_GIVEN else f"; leave it out for the default ({spec.default})"
        )
        raise UserError(f"{flag(name)} {show(shown)}: {rule}{way_out}") from None


@dataclass(frozen=True)
class Options:
    """A command's options: checked when made, mergeable, and the same again after a trip through YAML."""

    def __post_init__(self) -> None:
        for name, spec in self.specs().items():
            object.__setattr__(self, name, parse_value(name, spec, getattr(self, name)))
        self.check()

    def check(self) -> None:
        """Rules between options; a subclass raises UserError here. None means: not decided yet."""

    @classmethod
    def specs(cls) -> dict[str, Spec]:
        """Every option by its field name, in the order of declaration."""
        return {field.name: field.metadata["spec"] for field in dataclasses.fields(cls)}

    @classmethod
    def takes_several(cls, name: str) -> bool:
        """Whether a field is a tuple or a mapping, so that its flag takes one word or more."""
        annotation = str(cls.__dataclass_fields__[name].type)
        return annotation.startswith(("tuple[", "collections.abc.Mapping["))

    @classmethod
    def merge(cls, *layers: Mapping[str, object]) -> Self:
        """Options from layers of values, of which later ones win: `merge(yaml_values, flags)`.

        Raises:
            UserError: an unknown name (with the nearest valid one), or a value that its option refuses.
        """
        values: dict[str, Any] = {}
        for layer in layers:
            for name in layer:
                _require_known(name, cls.specs())
            values.update(layer)
        return cls(**values)

    @classmethod
    def from_yaml(cls, path: str | Path, **flags: object) -> Self:
        """Options from a YAML file; `flags` win over it, but each value of the file must be valid."""
        return cls.merge(cls.yaml_values(path), flags)

    @classmethod
    def yaml_values(cls, path: str | Path) -> dict[str, object]:
        """The values a YAML file sets, each checked on its own, so that the message can name the file."""
        values = read_yaml(path)
        try:
            for name, value in values.items():
                _require_known(name, cls.specs())
                values[name] = parse_value(name, cls.specs()[name], value)
        except UserError as error:
            raise UserError(f"--config {show(str(path))}: {error}") from None
        return values

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON and YAML: tuples become lists."""
        values = {name: getattr(self, name) for name in self.specs()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def to_yaml(self) -> str:
        """The text of a YAML file from which `from_yaml` makes an equal object."""
        import yaml

        # Without allow_unicode, under which PyYAML writes some line breaks (U+0085) so that it reads them as spaces.
        return yaml.safe_dump(self.to_dict(), sort_keys=False, width=100)


def _require_known(name: object, specs: Mapping[str, Spec]) -> None:
    if name in specs:
        return
    close = nearest(str(name), specs)
    hint = f"did you mean {close}?" if close else f"the keys are {', '.join(specs)}"
    raise UserError(f"unknown option {show(name)}: {hint}")


def read_yaml(path: str | Path) -> dict[str, object]:
    """The mapping in a YAML file; `batch-size` and `batch_size` are the same key, at its top level.

    Raises:
        UserError: missing, unreadable, not UTF-8, no YAML (with the line), no mapping, a key given twice.
    """
    import yaml

    named = f"--config {show(str(path))}"
    try:
        content = Path(path).expanduser().read_bytes().decode("utf-8-sig")
        values = yaml.load(content, Loader=_loader())
    except UnicodeDecodeError as error:
        raise UserError(f"{named}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{named}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except yaml.YAMLError as error:
        raise UserError(f"{named}: {_problem(error)}; mend that line") from None
    except (ValueError, RecursionError) as error:  # from PyYAML's dates and numbers, and from endless nesting
        raise UserError(f"{named}: is not valid YAML ({show(str(error))}); mend it") from None
    if not isinstance(values, dict):
        kind = "is empty" if values is None else f"holds a {type(values).__name__}, not a mapping"
        raise UserError(f"{named}: {kind}; write one 'option: value' on each line")
    names = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name in names:
            raise UserError(f"{named}: is not valid YAML, the key {show(name)} is given twice; mend that line")
        names[name] = value
    return names


def _problem(error: "yaml.YAMLError") -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"is not valid YAML, {where}{' '.join(str(problem).split())}"


def _loader() -> "type[yaml.SafeLoader]":
    """PyYAML's safe loader, without what it does in silence: taking the last of two equal keys (refused here), and
    reading 010 as 8 and 1:30 as 90, as YAML 1.1 has it (text here, which the option itself then judges).

    Made on demand, because PyYAML is imported on demand.
    """
    import yaml

    numbers = {"tag:yaml.org,2002:int": WHOLE_NUMBER, "tag:yaml.org,2002:float": DECIMAL_NUMBER}

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            mapping: dict[Hashable, Any] = {}
            for key_node, value_node in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str):
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {show(key)} is not the name of an option", key_node.start_mark
                    )
                if key in mapping:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {show(key)} is given twice", key_node.start_mark
                    )
                mapping[key] = self.construct_object(value_node, deep=True)
            return mapping

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in numbers]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, pattern in numbers.items():
        Loader.add_implicit_resolver(tag, pattern, list("-+.0123456789"))
    return Loader
