"""Pages of reference: every option of a command has a row in a table, word for word as the code has it."""

from pathlib import Path

from switchlora.options.fields import Options, flag

DOCS = Path(__file__).resolve().parents[1] / "docs"


def assert_page_has_every_option(page: str, options: type[Options]) -> None:
    """Hold docs/PAGE against the options' units, defaults and help."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    for name, spec in options.specs().items():
        cells = (f"`{spec.metavar}`" if spec.metavar else "switch", spec.default, spec.help)
        row = " | ".join([f"| `{flag(name)}`", *(cell.replace("|", r"\|") for cell in cells)]) + " |"
        assert row in lines, f"docs/{page} has no row {row}"
