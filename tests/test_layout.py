"""The rooms of the project: imports point one way."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = {"options", "utils"}
ALLOWED = {  # room → rooms it may import from, its own included
    "options": {"options"},
    "utils": {"utils"},
    "visualize": BASE | {"visualize"},
    "models": BASE | {"visualize", "models"},
    "dataset": BASE | {"visualize", "dataset"},
    "export": BASE | {"visualize", "models", "export"},
    "evaluation": BASE | {"visualize", "models", "dataset", "evaluation"},
    "training": BASE | {"visualize", "models", "dataset", "evaluation", "training"},
    "scripts": BASE | {"visualize", "models", "dataset", "export", "evaluation", "training"},
}
OWN = {*ALLOWED, *(path.stem for path in ROOT.glob("*.py"))}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_point_one_way(room):
    paths = list(ROOT.glob("*.py") if room == "scripts" else (ROOT / room).rglob("*.py"))
    assert paths
    wrong = [f"{path.relative_to(ROOT)} imports {name}"
             for path in paths for name in imports(path) if name in OWN - ALLOWED[room]]
    assert not wrong


def test_options_import_the_standard_library_alone():
    import sys
    assert all(name == "options" or name in sys.stdlib_module_names
               for path in (ROOT / "options").glob("*.py") for name in imports(path))
