"""Options of `switchlora plan`, its page of reference, and the table in it."""

from pathlib import Path

from benchmarks.plan import BEGIN, END, rows
from switchlora.planning.options import PlanOptions
from tests.option_tables import assert_page_has_every_option

PAGE = Path(__file__).resolve().parents[3] / "docs" / "plan.md"


def test_the_reference_page_has_every_option_as_the_code_has_it() -> None:
    assert_page_has_every_option("plan.md", PlanOptions)


def test_the_table_is_what_the_planner_says() -> None:
    _, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    assert rest.partition(END)[0].strip().splitlines() == list(rows())
