"""The pages of docs/evidence hold what the experiments' results say, and nothing else."""

import json
import re
from pathlib import Path

import pytest

from experiments import tables

EXPERIMENTS = Path(tables.__file__).parent


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.stem)
def test_the_tables_are_those_of_the_results(page: Path) -> None:
    text = page.read_text("utf-8")
    assert tables.PLACE.search(text) or page.name == "bf16.md"  # whose table test_costs.py holds
    assert tables.written(text) == text, "run python experiments/tables.py"


def test_readme_quotes_the_frontier() -> None:
    """Each line of README's table is one of the page's: what is held and the difference to full rank; and the time."""
    root = EXPERIMENTS.parent
    page = (root / "docs/evidence/memory.md").read_text("utf-8")
    table = re.search(r"<!-- frontier: .*? -->(.*?)<!-- end -->", page, re.DOTALL)
    times = re.search(r"<!-- times: times -->(.*?)<!-- end -->", page, re.DOTALL)
    assert table is not None and times is not None
    known_times = {cells[3].split("±")[0].strip() for cells in map(_cells, times[1].splitlines()) if len(cells) > 4}
    known = {(cells[2].strip(), cells[4].strip()) for cells in map(_cells, table[1].splitlines()) if len(cells) > 4}
    worth = (root / "README.md").read_text("utf-8").split("## What it is worth", 1)[1].split("\n## ", 1)[0]
    lines = [cells for cells in map(_cells, worth.splitlines()) if len(cells) == 6][2:]  # after the head and its line
    assert len(lines) > 5
    assert {(cells[2].strip(), cells[3].strip()) for cells in lines} <= known
    assert {cells[4].strip() for cells in lines} <= {*known_times, ""}


def _cells(line: str) -> list[str]:
    return line.split("|")


@pytest.mark.parametrize("page", sorted(EXPERIMENTS.glob("*/report.html")), ids=lambda page: page.parent.name)
def test_the_pages_are_those_of_the_results(page: Path) -> None:
    """Of the data that a page embeds; what it draws is drawn from these."""
    embedded = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL
    )
    assert embedded is not None
    redraw = f"switchlora compare --config experiments/{page.parent.name}/config.yaml --hours 0"
    assert json.loads(embedded[1]) == json.loads(json.dumps(tables.data_of(page.parent.name))), redraw


def test_a_table_follows_its_results(tmp_path: Path, monkeypatch) -> None:
    """With one loss changed the table is another, so the test above can fail."""
    made = {}
    for change in (0.0, 0.1):
        copy = tmp_path / str(change) / "main"
        (copy / "results").mkdir(parents=True)
        for path in [EXPERIMENTS / "main" / "config.yaml", *(EXPERIMENTS / "main" / "results").glob("*.json")]:
            (copy / path.relative_to(EXPERIMENTS / "main")).write_bytes(path.read_bytes())
        for path in (copy / "results").glob("full-*-seed0-1000steps.json"):
            record = json.loads(path.read_text("utf-8"))
            record["validation_loss"] += change
            path.write_text(json.dumps(record), "utf-8")
        monkeypatch.setattr(tables, "HERE", copy.parent)
        made[change] = tables.table("main")
    assert made[0.0] != made[0.1]
