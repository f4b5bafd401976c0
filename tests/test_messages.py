"""Every message of a UserError is one line of at most 200 characters: conftest checks those of all tests."""
import ast
from pathlib import Path

import pytest

from tests.conftest import LONGEST, MESSAGES
from utils.errors import UserError

ROOT = Path(__file__).parent.parent


def written(node):
    """The characters of a message that stand in the source: the least that it can be long."""
    return sum(len(part.value) for part in ast.walk(node)
               if isinstance(part, ast.Constant) and isinstance(part.value, str))


def test_no_message_is_too_long_as_written():
    paths = [path for path in (*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/**/*.py"))
             if ROOT / "tests" not in path.parents]
    calls = [(path.relative_to(ROOT), node.lineno, written(node.args[0])) for path in paths
             for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError"]
    assert len(calls) > 50
    assert not [call for call in calls if call[2] > LONGEST]


def test_messages_that_tests_meet_are_collected():
    for message in ("x" * 300, "two\nlines"):
        UserError(message)
        assert MESSAGES.pop() == message
    with pytest.raises(UserError, match="told"):
        raise UserError("told", ["a detail"])
    assert MESSAGES == ["told"]
