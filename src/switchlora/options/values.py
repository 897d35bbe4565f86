"""What one option's value may be: small parsers, from whatever a flag, a YAML file or Python hands over.

All three sources go through the same parser, so that `--lr 1e-3`, `lr: 1e-3` (which YAML 1.1 reads as the
*string* '1e-3') and `lr=0.001` are one thing, and a wrong value gets one message wherever it came from.
A parser takes the raw value and returns the clean one, or raises `Refused` with the rule that was broken; the
caller adds the option's name, the value and the way out. Nothing is rounded or clamped.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Parser = Callable[[object], Any]
LARGEST_SEED = 2**63 - 1
LARGEST_COUNT = 2**31 - 1
LARGEST_NUMBER = 1e18  # a product of two is still finite in fp32
SMALLEST_VOCABULARY = 257  # every byte, and end-of-text; data.tokenizer's, which would cost an import of numpy
LARGEST_VOCABULARY = 2**24
LEADING_ZERO = re.compile(r"\s*[-+]?0[\d_]")
PLAIN_NAMES = re.compile(r"[A-Za-z0-9_.]+(\s*,\s*[A-Za-z0-9_.]+)*")
STRATEGIES = ("ddp", "fsdp", "none")
DEVICES = re.compile(r"auto|cpu|cuda(:\d+)?")


class Refused(ValueError):
    """The rule that a value broke, as the middle part of a one-line message."""


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that `word` was probably meant to be, or None."""
    close = difflib.get_close_matches(word.lower(), list(names), n=1, cutoff=0.6)
    return close[0] if close else None


def one_of(names: Sequence[str]) -> str:
    """'a, b or c'."""
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def show(value: object, limit: int = 120) -> str:
    """A value as part of a one-line message: no line breaks; cut in the middle, for a path says most at its end."""
    is_plain = isinstance(value, str) and value.isprintable() and value != "" and " " not in value
    try:
        text = str(value) if is_plain or isinstance(value, int | float) else repr(value)
    except ValueError:  # Python refuses to write integers of more than 4300 digits
        text = "(a number of thousands of digits)"
    half = limit // 2 - 2
    return text if len(text) <= limit else f"{text[:half]}...{text[-half:]}"


def _as_float(value: object, rule: str) -> float:
    """bool is an int in Python, so it is turned away by name: `steps: yes` is a mistake, not one step."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Refused(rule)
    if isinstance(value, str) and LEADING_ZERO.match(value):
        raise Refused(f"{rule}, without a leading zero (which some read as octal)")
    try:
        result = float(value)
    except (ValueError, OverflowError):
        raise Refused(rule) from None
    if not math.isfinite(result):
        raise Refused(rule)
    return result


def largest_divisor(number: int, most: int) -> int:
    """Of a number above 0, the largest one that is not above `most`, which is above 0."""
    small = [size for size in range(1, math.isqrt(number) + 1) if number % size == 0]
    return max(size for size in (*small, *(number // size for size in small)) if size <= most)


def integer(minimum: int = 0, maximum: int = LARGEST_COUNT) -> Parser:
    """A whole number in [minimum, maximum]. '1e3' and 1000.0 are 1000; '2.5' is refused."""
    rule = f"must be a whole number, at least {minimum} and at most {maximum}"

    def parse(value: object) -> int:
        as_float = _as_float(value, rule)
        if not as_float.is_integer():
            raise Refused(rule)
        try:
            exact = int(value)  # type: ignore[call-overload]  # not by way of float, which has gaps above 2**53
        except ValueError:
            exact = int(as_float)  # '1e3'
        if not minimum <= exact <= maximum:
            raise Refused(rule)
        return int(exact)

    return parse


def number(
    *, minimum: float = 0.0, maximum: float = LARGEST_NUMBER, open_below: bool = False, or_inf: bool = False
) -> Parser:
    """A number in [minimum, maximum], with `open_below` above minimum; infinite only with `or_inf`."""
    rule = f"must be a number {'above' if open_below else 'of at least'} {minimum:g}"
    rule += f" and at most {maximum:g}" + (", or inf (never)" if or_inf else "")

    def parse(value: object) -> float:
        if or_inf and value in ("inf", ".inf", math.inf):
            return math.inf
        result = _as_float(value, rule)
        if not minimum <= result <= maximum or (open_below and result == minimum):
            raise Refused(rule)
        return result

    return parse


def or_none(parser: Parser) -> Parser:
    """`parser`, or the word 'none', which is a value of its own here and becomes None."""

    def parse(value: object) -> Any:
        if value is None or (isinstance(value, str) and value.strip().lower() == "none"):
            return None
        try:
            return parser(value)
        except Refused as rule:
            raise Refused(f"{rule}, or none") from None

    return parse


def yes_no(value: object) -> bool:
    """true or false, and nothing that merely looks like it."""
    if not isinstance(value, bool):
        raise Refused("must be true or false")
    return value


def text(value: object) -> str:
    """Words or a path; numbers are refused, because YAML would have lost their leading zeros."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not (isinstance(value, str) and not value.strip()):
        return verbatim(value)
    raise Refused("must not be empty")


def verbatim(value: object) -> str:
    """`text` in which blanks count, such as a prompt."""
    if not isinstance(value, str):
        raise Refused("must be text (in YAML: put it in quotes)")
    if not value:
        raise Refused("must not be empty")
    if "\0" in value:
        raise Refused("must not contain a NUL character")
    return value


def texts(value: object, each: Parser = text) -> tuple[str, ...]:
    """One text or several."""
    if isinstance(value, str | os.PathLike):
        return (each(value),)
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise Refused("must be one text or a list of texts (in YAML: put it in quotes)")
    if not value:
        raise Refused("must name at least one")
    return tuple(each(item) for item in value)


def verbatim_texts(value: object) -> tuple[str, ...]:
    """`texts` in which blanks count."""
    return texts(value, verbatim)


def several(parser: Parser) -> Parser:
    """One value or several, each as `parser` wants it and none twice."""

    def parse(value: object) -> tuple[Any, ...]:
        values = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,)
        if not values:
            raise Refused("must name at least one")
        parsed: tuple[Any, ...] = ()
        for item in values:
            try:
                parsed += (parser(item),)
            except Refused as rule:
                raise Refused(f"{show(item)} {rule}" if len(values) > 1 else str(rule)) from None
        for place, item in enumerate(parsed):
            if item in parsed[:place]:
                raise Refused(f"must not name {show(item)} twice")
        return parsed

    return parse


def choice(*names: str) -> Parser:
    """One of the names, exactly."""

    def parse(value: object) -> str:
        if isinstance(value, str) and value in names:
            return value
        close = nearest(value, names) if isinstance(value, str) else None
        raise Refused((f"did you mean {close}? " if close else "") + f"must be {one_of(names)}")

    return parse


def module_targets(value: object) -> str | tuple[str, ...]:
    """'all-linear'; names (a list, or joined by commas): endings of module names; else: a pattern.

    A text of letters, digits, '_', '.' and ',' alone is read as names: as a regular expression, `q_proj`
    would have to match a whole module path, and never does.
    """
    if not isinstance(value, str):
        return texts(value)
    value = text(value).strip()
    if value == "all-linear":
        return value
    if value.lower().replace("_", "-") in ("all-linear", "all"):
        raise Refused("did you mean all-linear? must be all-linear, module names joined by commas, or a pattern")
    if PLAIN_NAMES.fullmatch(value):
        return tuple(name.strip() for name in value.split(","))
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise Refused(
            f"is neither all-linear, nor names joined by commas, nor a regular expression ({error})"
        ) from None
    return value


def strategy(value: object) -> str:
    """ddp, fsdp or none. Whether the launch can give it is found out when the run starts."""
    if isinstance(value, str) and value.lower().startswith(("deepspeed", "zero")):
        raise Refused(
            "DeepSpeed is not supported, for it would flatten the factors; use fsdp, which shares out as much"
        )
    return str(choice(*STRATEGIES)(value))


def byte_size(value: object) -> int:
    """A number of bytes, or one with a unit: 80GB (10^9), 80GiB (2^30), and so with M and T."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([MGT])(i?)B)?\s*", str(value))
    if isinstance(value, bool) or match is None:
        raise Refused("must be a size in bytes, such as 80GB or 24GiB")
    number, unit, binary = match.groups()
    power = 0 if unit is None else " KMGT".index(unit)
    return int(float(number) * (1024 if binary else 1000) ** power)


def device_name(value: object) -> str:
    """auto, cpu, cuda or cuda:N. Whether the machine has it is found out when the run starts."""
    if not isinstance(value, str) or not DEVICES.fullmatch(value):
        raise Refused("must be auto, cpu, cuda or cuda:N; mps and others are untested, so use cpu there")
    return value


def tokenizer_name(value: object) -> str:
    """train:VOCAB, a file, a folder or a hub name. VOCAB: 256 bytes and end-of-text at the least."""
    value = text(value)
    if value.startswith("train:"):
        try:
            return f"train:{integer(SMALLEST_VOCABULARY, LARGEST_VOCABULARY)(value.removeprefix('train:'))}"
        except Refused as rule:
            raise Refused(f"VOCAB in train:VOCAB {rule}") from None
    return value
