"""Options of `switchlora plan`, its page of reference, and the table in it."""

import re
from pathlib import Path

from benchmarks.plan import BEGIN, END, rows
from switchlora.planning.options import PlanOptions
from switchlora.training.fields import flag

PAGE = Path(__file__).resolve().parents[3] / "docs" / "plan.md"


def test_the_reference_page_has_every_option_as_the_code_has_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, spec in PlanOptions.specs().items():
        row = re.search(rf"^\| `{flag(name)}` \|(.*)\|(.*)\|(.*)\|$", page, re.MULTILINE)
        assert row, f"{flag(name)} has no row in docs/plan.md"
        unit, default, meaning = (cell.strip().replace(r"\|", "|") for cell in row.groups())
        assert unit == (f"`{spec.metavar}`" if spec.metavar else "switch"), name
        assert default == spec.default, name
        assert meaning == spec.help, name


def test_the_table_is_what_the_planner_says() -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    assert rest.partition(END)[0].strip().splitlines() == list(rows())
