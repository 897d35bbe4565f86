"""Links of the documentation, and the paths that it names, checked against what is on disk.

Looked at: `[text](target)` and `![text](target)` with a relative target, its `#heading` included, and paths
in backticks that start with a folder of the repository (`src/...`, `tests/...`). Fenced blocks are left out.
"""

import re
from pathlib import Path

FENCED = re.compile(r"^```.*?^```$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
NAMED_PATH = re.compile(r"`((?:src|tests|docs|configs|examples|benchmarks|experiments)/[\w./-]+)`")
HEADING = re.compile(r"^#+ +(.*)$", re.M)


def own_pages(root: Path) -> list[Path]:
    """The pages that belong to the documentation: those at the top and all under docs/."""
    return sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md")])


def broken_references(root: Path) -> list[str]:
    """One line for every link or named path that leads nowhere."""
    violations = []
    for page in own_pages(root):
        text = FENCED.sub("", page.read_text(encoding="utf-8"))
        for target in LINK.findall(text):
            if not re.match(r"[a-z]+:", target) and not _leads_somewhere(page, target):
                violations.append(f"{page}: link to {target} leads nowhere")
        for named in NAMED_PATH.findall(text):
            if not (root / named).exists():
                violations.append(f"{page}: names {named}, which does not exist")
    return violations


def unlisted_pages(root: Path) -> list[str]:
    """Pages under docs/ that neither its index, docs/README.md, nor the README.md of their own folder links to."""
    pages = sorted((root / "docs").rglob("*.md"))
    listed = {root / "docs" / "README.md"}
    for index in (page for page in pages if page.name == "README.md"):
        targets = LINK.findall(index.read_text("utf-8"))
        listed |= {(index.parent / target.split("#")[0]).resolve() for target in targets}
    return [str(page) for page in pages if page not in listed and page.resolve() not in listed]


def _leads_somewhere(page: Path, target: str) -> bool:
    path_part, _, heading = target.partition("#")
    path = (page.parent / path_part) if path_part else page
    if not path.exists():
        return False
    return not heading or (path.suffix == ".md" and heading in _anchors(path))


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings: lower case, hyphens, no punctuation."""
    headings = HEADING.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
