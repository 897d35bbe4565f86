"""Options of `switchlora spectrum`, and its page of reference."""

import pytest

from switchlora.errors import UserError
from switchlora.spectrum.options import SpectrumOptions
from tests.option_tables import assert_page_has_every_option


def test_the_reference_page_has_every_option_as_the_code_has_it() -> None:
    assert_page_has_every_option("spectrum.md", SpectrumOptions)


def test_labels_must_be_as_many_as_models() -> None:
    with pytest.raises(UserError, match="names 1 of 2 models"):
        SpectrumOptions(checkpoint=("a", "b"), labels=("a",))
