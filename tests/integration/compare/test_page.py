"""report.html in a real browser: it loads without errors and offline, shows the figures of the records, and reacts."""

import math
import shutil
from pathlib import Path

import pytest

from switchlora.compare.options import CompareOptions
from switchlora.compare.plan import make_plan
from switchlora.compare.tables import report_data
from switchlora.report.compare_page import PAGE, PICTURE, files
from tests.unit.compare.records import finish

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")


def loss_of(run):
    if run.contender.label == "lora" and run.seed == 2:
        return math.inf
    own = {"full": 1, "lora": 2, "switchlora": 3}[run.contender.label]  # so that no two scatter alike
    scatter = (0.1 + 0.01 * own) * (run.seed % 7)
    return 4 + math.log(run.lr / 0.01) ** 2 + math.log(run.other_lr / 0.02) ** 2 + scatter


@pytest.fixture(scope="module")
def data():
    options = CompareOptions(
        pretrain={"model": "tiny", "steps": 100}, methods=("full", "lora", "switchlora"), ranks=(8, 16)
    )
    plan = make_plan(options)
    return report_data(plan, finish(plan, loss_of))


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for name, content in files(data).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def page(folder):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=QUIET)
        page = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}).new_page()
        page.said = []
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("console", lambda line: page.said.append(line.text) if line.type in ("error", "warning") else None)
        page.on(
            "request", lambda ask: page.said.append(ask.url) if not ask.url.startswith(("file:", "data:")) else None
        )
        page.goto((folder / PAGE).as_uri())
        page.wait_for_selector("body[data-drawn]")
        yield page
        browser.close()


def cells_of(page, table: str) -> list[list[tuple[str, str | None]]]:
    """(text, data-value) of every cell, by row."""
    return [
        [(cell.inner_text(), cell.get_attribute("data-value")) for cell in row.query_selector_all("td")]
        for row in page.query_selector_all(f"#{table} tbody tr")
    ]


def test_it_loads_offline_without_errors_and_draws_every_figure(page, data):
    assert page.said == []
    drawn = page.query_selector_all(".js-plotly-plot .main-svg")
    assert len(page.query_selector_all(".js-plotly-plot")) == 2 + len(data["searches"])
    assert drawn


def test_the_tables_hold_the_figures_of_the_records(page, data):
    lines = cells_of(page, "results")
    assert [line[0][0] for line in lines] == [row["name"] for row in data["rows"]]
    for line, row in zip(lines, data["rows"], strict=True):
        assert float(line[1][1]) == row["lr"]
        assert float(line[2][1]) == row["other_lr"]
        assert line[4][0] == f"{row['perplexity']['mean']:.2f} ± {row['perplexity']['sd']:.2f}"
        assert float(line[4][1]) == row["perplexity"]["mean"]
        assert float(line[5][1]) == row["loss"]["mean"]
        if not row["is_baseline"]:
            difference = row["difference"]
            assert line[6][0] == f"{difference['mean']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    (lora,) = (line for line in lines if line[0][0] == "lora r=16")
    assert lora[3][0] == "2, 1 diverged"
    for line, row in zip(cells_of(page, "memory"), data["rows"], strict=True):
        assert float(line[6][1]) == row["device_bytes"]


def test_every_run_is_there_with_its_command_as_text(page, data):
    assert len(cells_of(page, "runs")) == len(data["runs"])
    commands = [code.text_content() for code in page.query_selector_all("#runs code")]
    assert commands == [run["command"] for run in data["runs"]]
    assert "<script>alert(1)</script>" in commands[0]  # which is therefore no script


def test_a_click_on_the_legend_hides_a_curve_and_its_seeds(page, data):
    def visible() -> list[str]:
        return page.evaluate(
            "document.getElementById('curves').data"
            ".filter(t => t.visible !== false && t.visible !== 'legendonly').map(t => t.name)"
        )

    before = visible()
    page.locator("#curves .legendtoggle").first.click()
    page.wait_for_function("document.getElementById('curves').data.some(t => t.visible === 'legendonly')")
    hidden = set(before) - set(visible())
    assert hidden == {"full", "full, seed 0", "full, seed 1", "full, seed 2"}
    page.locator("#curves .legendtoggle").first.click()
    page.wait_for_function("document.getElementById('curves').data.every(t => t.visible !== 'legendonly')")


def test_what_the_legend_hid_stays_hidden_in_other_views_and_comes_back(page):
    def hidden() -> set[str]:
        return set(
            page.evaluate(
                "document.getElementById('curves').data.filter(t => t.visible === 'legendonly').map(t => t.name)"
            )
        )

    def show(place: int, title: str) -> None:
        page.locator("#curves .updatemenu-button").nth(place).click()
        page.wait_for_function(f"document.getElementById('curves').layout.xaxis.title.text.includes('{title}')")

    page.locator("#curves .legendtoggle").first.click()
    page.wait_for_function("document.getElementById('curves').data.some(t => t.visible === 'legendonly')")
    full = {"full", "full, seed 0", "full, seed 1", "full, seed 2"}
    assert hidden() == full
    show(1, "seconds")
    assert hidden() == full
    show(2, "optimizer state")
    assert hidden() == {"full"}
    show(0, "tokens")
    assert hidden() == full
    page.locator("#curves .legendtoggle").first.click()
    page.wait_for_function("document.getElementById('curves').data.every(t => t.visible !== 'legendonly')")


@pytest.mark.parametrize(("place", "title"), [(1, "seconds"), (2, "optimizer state"), (0, "tokens")])
def test_curves_against_tokens_time_and_memory(page, data, place, title):
    page.locator("#curves .updatemenu-button").nth(place).click()
    page.wait_for_function(f"document.getElementById('curves').layout.xaxis.title.text.includes('{title}')")
    names = page.evaluate("document.getElementById('curves').data.filter(t => t.visible !== false).map(t => t.name)")
    labels = {row["label"] for row in data["rows"]}
    assert (set(names) == labels) == (title == "optimizer state")
    assert page.said == []


def test_a_click_on_a_heading_sorts(page, data):
    page.locator("#results th", has_text="perplexity").click()
    values = [float(line[4][1]) for line in cells_of(page, "results")]
    assert values == sorted(values) and len(set(values)) > 1
    page.locator("#results th", has_text="perplexity").click()
    assert [float(line[4][1]) for line in cells_of(page, "results")] == sorted(values, reverse=True)
    page.reload()
    page.wait_for_selector("body[data-drawn]")


def test_the_curve_of_a_run_that_diverged_is_drawn(page):
    names = page.evaluate("document.getElementById('curves').data.map(t => t.name)")
    assert "lora r=16, seed 2, diverged" in names


def test_there_is_a_picture(folder):
    assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")
