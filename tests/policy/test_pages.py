"""Documentation leads somewhere: links, named files, and an index that lists every page."""

import pytest

from tests.policy.pages import broken_references, own_pages, unlisted_pages
from tests.policy.source import REPOSITORY, listed, write_tree

EXPECTED_PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/README.md", "docs/algorithm.md")


def test_links_and_named_files_exist():
    violations = broken_references(REPOSITORY)
    assert violations == [], listed(violations)


def test_the_index_lists_every_page():
    violations = unlisted_pages(REPOSITORY)
    assert violations == [], listed(violations)


@pytest.mark.parametrize("page", EXPECTED_PAGES)
def test_the_pages_that_people_look_for_are_there(page):
    assert REPOSITORY / page in own_pages(REPOSITORY)


GOOD = {
    "README.md": "See [the log](docs/log.md#2026-10-01-it-didnt), [web](https://x.org) and `src/a.py`.",
    "docs/README.md": "[log](log.md) ![curve](loss.png)",
    "docs/log.md": "# Log\n\n## 2026-10-01: it didn't\n",
    "docs/loss.png": "",
    "src/a.py": "",
}


def test_good_references_pass(tmp_path):
    write_tree(tmp_path, GOOD)
    assert broken_references(tmp_path) == []
    assert unlisted_pages(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[x](docs/nowhere.md)", "link to docs/nowhere.md"),
        ("[x](docs/log.md#no-such-heading)", "link to docs/log.md#no-such-heading"),
        ("![x](docs/nothing.png)", "link to docs/nothing.png"),
        ("`src/b.py`", "names src/b.py"),
    ],
)
def test_a_reference_to_nowhere_is_found(tmp_path, text, complaint):
    write_tree(tmp_path, {**GOOD, "README.md": text})
    (violation,) = broken_references(tmp_path)
    assert complaint in violation


def test_an_unlisted_page_is_found(tmp_path):
    write_tree(tmp_path, {**GOOD, "docs/orphan.md": ""})
    assert unlisted_pages(tmp_path) == [str(tmp_path / "docs/orphan.md")]
