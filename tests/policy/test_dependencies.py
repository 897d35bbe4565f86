"""What the package may not depend on."""

from tests.policy.source import REPOSITORY


def test_nothing_of_apollos_published_code_is_used() -> None:
    """It is CC-BY-NC: neither a dependency nor a source. Its paper may be implemented, and is."""
    for name in ("pyproject.toml", "constraints.txt"):
        assert "apollo" not in (REPOSITORY / name).read_text(encoding="utf-8").lower()
    for path in (REPOSITORY / "src").rglob("*.py"):
        assert "apollo_torch" not in path.read_text(encoding="utf-8")
