"""Pages of reference of the commands for finished models."""

import pytest

from switchlora.evaluation.options import EvaluateOptions
from switchlora.finetuning.options import FinetuneOptions
from switchlora.generation.options import GenerateOptions
from tests.option_tables import assert_page_has_every_option


@pytest.mark.parametrize(
    ("page", "options"),
    [("evaluate.md", EvaluateOptions), ("finetune.md", FinetuneOptions), ("generate.md", GenerateOptions)],
)
def test_every_option_has_its_row(page, options):
    assert_page_has_every_option(page, options)
