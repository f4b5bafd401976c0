"""The rooms of the project: imports point one way."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {"options": set(), "models": {"models", "utils"}, "dataset": {"dataset", "utils"}, "utils": {"utils"},
           "scripts": {"options", "models", "dataset", "utils"}}
OWN = {"options", "models", "dataset", "utils", *(path.stem for path in ROOT.glob("*.py"))}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_point_one_way(room):
    paths = ROOT.glob("*.py") if room == "scripts" else (ROOT / room).rglob("*.py")
    wrong = [f"{path.relative_to(ROOT)} imports {name}" for path in paths for name in imports(path) if name in OWN - ALLOWED[room]]
    assert not wrong


def test_options_import_the_standard_library_alone():
    import sys
    assert all(name in sys.stdlib_module_names for path in (ROOT / "options").glob("*.py") for name in imports(path))
