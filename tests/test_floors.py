"""The house plan: a file imports only from lower floors, and heavy libraries only where they belong."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mechdiff"
TABLE = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text()))
FLOORS = [set(names.split(", ")) for names in re.findall(r"^ *\d+  ([\w, ]+)$", TABLE, re.MULTILINE)]
ONLY_IN = {
    "flax": {"gates.py", "layers.py"},
    "orbax": {"checkpoint.py"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "torch": set(),
    "tensorflow": set(),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The module or sub-package of mechdiff that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_lower_floors(path):
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    here = room(path)
    if here == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "mechdiff" and len(parts) > 1 and parts[1] in floor:
            below = floor[parts[1]] < floor[here]
            assert below or parts[1] == here, f"{here} imports {name}"


def test_every_module_has_one_floor_and_no_floor_a_module_that_is_gone():
    assert sorted(name for names in FLOORS for name in names) == sorted(
        {room(path) for path in FILES} - {"__init__"}
    )


@pytest.mark.parametrize("library", ONLY_IN)
def test_library_is_imported_only_where_it_belongs(library):
    users = {path for path in FILES if any(name.split(".")[0] == library for name in imports(path))}
    assert {room(path) if path.parent != PACKAGE else path.name for path in users} <= ONLY_IN[library]


def test_no_file_is_without_a_docstring():
    assert [path for path in FILES if ast.get_docstring(ast.parse(path.read_text())) is None] == []
