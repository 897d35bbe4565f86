"""Public names are documented: those that `switchlora` offers, and those one finds in its files."""

import inspect

import pytest

import switchlora
from tests.policy.docstrings import undocumented
from tests.policy.source import listed, own_modules, read_modules, write_tree

# The names that users were promised; more may join them, none may go.
PROMISED = {"SwitchLoraConfig", "SwitchLoraLinear", "SwitchLora", "convert", "to_dense", "pretrain"}


def test_every_public_name_in_the_source_is_documented():
    violations = undocumented(own_modules())
    assert violations == [], listed(violations)


def test_the_promised_names_are_offered():
    assert set(switchlora.__all__) >= PROMISED
    assert set(dir(switchlora)) >= PROMISED


def test_everything_offered_exists_and_is_documented():
    for name in switchlora.__all__:
        offered = getattr(switchlora, name)
        if not isinstance(offered, str):
            assert inspect.getdoc(offered), f"switchlora.{name} has no docstring"


DOCUMENTED = {
    "a.py": '''
"""Idea."""

class Config:
    """Fields."""

    def check(self):
        """Checks."""

    def _hidden(self): ...

class Layer(nn.Module):
    """Layer."""

    def forward(self, x): ...

class Source(Protocol):
    """What can be read."""

    def read(self):
        """Reads."""

class Files:
    """A source, by its shape alone.

    num_bytes: of the text.
    """

    @property
    def num_bytes(self): ...

    def read(self): ...

def _private(): ...
'''
}


def test_documented_source_passes(tmp_path):
    assert undocumented(read_modules(write_tree(tmp_path, DOCUMENTED))) == []


@pytest.mark.parametrize(
    ("docstring", "complaint"),
    [
        ('"""Idea."""', "the module says nothing"),
        ('"""Fields."""', "Config has no docstring"),
        ('"""Checks."""', "Config.check has no docstring"),
        ('"""Reads."""', "Source.read has no docstring"),
        ('"""Layer."""', "Layer has no docstring"),
    ],
)
def test_a_missing_docstring_is_found(tmp_path, docstring, complaint):
    text = DOCUMENTED["a.py"].replace(docstring, "...", 1)
    violations = undocumented(read_modules(write_tree(tmp_path, {"a.py": text})))
    assert any(complaint in violation for violation in violations), violations
