"""Pages of reference of the commands for finished models."""

import pytest

from switchlora.errors import UserError
from switchlora.evaluation.options import EvaluateOptions
from switchlora.finetuning.options import FinetuneOptions
from switchlora.generation.options import GenerateOptions
from switchlora.spectrum.options import SpectrumOptions
from tests.option_tables import assert_page_has_every_option


@pytest.mark.parametrize(
    ("page", "options"),
    [("evaluate.md", EvaluateOptions), ("finetune.md", FinetuneOptions), ("generate.md", GenerateOptions)],
)
def test_every_option_has_its_row(page, options):
    assert_page_has_every_option(page, options)


@pytest.mark.parametrize("options", [EvaluateOptions, FinetuneOptions, GenerateOptions, SpectrumOptions])
def test_what_must_be_given_is_not_to_be_left_out(options):
    assert options().checkpoint is None  # what the command then says
    with pytest.raises(UserError, match=r"^--checkpoint ' ': must not be empty$"):
        options(checkpoint=" ")
