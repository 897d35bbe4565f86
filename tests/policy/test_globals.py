"""No module global holds a setting."""

import pytest

from tests.policy.globals import global_violations
from tests.policy.source import listed, own_modules, read_modules, write_tree


def test_no_module_holds_settings():
    violations = global_violations(own_modules())
    assert violations == [], listed(violations)


@pytest.mark.parametrize(
    "text",
    [
        "PRESETS = {'tiny': 1}\ndef f():\n    return PRESETS['tiny']",
        "TABLE: dict[str, int] = dict(a=1)",
        "__all__ = ['f']",
        "def f():\n    settings = {}\n    settings['a'] = 1\n    return settings",
        "logger = logging.getLogger(__name__)",
        "CACHE = {}\ndef f(CACHE):\n    CACHE['a'] = 1",
    ],
)
def test_constants_and_locals_pass(tmp_path, text):
    assert global_violations(read_modules(write_tree(tmp_path, {"a.py": text}))) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1\ndef f():\n    global x\n    x = 2", "3: global x"),
        ("class C:\n    def f(self):\n        global y\n        y = 2", "3: global y"),
        ("settings = {}", "1: settings is a mutable global"),
        ("_seen: set[str] = set()", "1: _seen is a mutable global"),
        ("queue = collections.deque()", "1: queue is a mutable global"),
        ("PRESETS = {}\ndef f():\n    PRESETS['a'] = 1", "3: changes the global PRESETS"),
        ("PRESETS = {}\ndef f():\n    del PRESETS['a']", "3: changes the global PRESETS"),
        ("PRESETS = {}\ndef f():\n    PRESETS.update(a=1)", "3: changes the global PRESETS"),
        ("STATE = Thing()\nasync def f():\n    STATE.rank = 1", "3: changes the global STATE"),
    ],
)
def test_a_setting_in_a_global_is_found(tmp_path, text, complaint):
    (violation,) = global_violations(read_modules(write_tree(tmp_path, {"a.py": text})))
    assert violation.endswith(complaint)
