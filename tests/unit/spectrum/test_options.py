"""Options of `switchlora spectrum`, and its page of reference."""

import re
from pathlib import Path

import pytest

from switchlora.errors import UserError
from switchlora.spectrum.options import SpectrumOptions
from switchlora.training.fields import flag


def test_the_reference_page_has_every_option_as_the_code_has_it() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "spectrum.md").read_text(encoding="utf-8")
    for name, spec in SpectrumOptions.specs().items():
        row = re.search(rf"^\| `{flag(name)}` \|(.*)\|(.*)\|(.*)\|$", page, re.MULTILINE)
        assert row, f"{flag(name)} has no row in docs/spectrum.md"
        unit, default, meaning = (cell.strip().replace(r"\|", "|") for cell in row.groups())
        assert unit == (f"`{spec.metavar}`" if spec.metavar else "switch"), name
        assert default == spec.default, name
        assert meaning == spec.help, name


def test_labels_must_be_as_many_as_models() -> None:
    with pytest.raises(UserError, match="names 1 of 2 models"):
        SpectrumOptions(checkpoint=("a", "b"), labels=("a",))
