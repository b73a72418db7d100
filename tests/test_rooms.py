"""Imports run one way: main -> evaluation -> runs -> training -> tasks -> models, data, diffusion; config beside tasks."""

import ast
from pathlib import Path

import pytest

import ddpm_jax

PACKAGE = Path(ddpm_jax.__file__).parent
# What modules of a room may import besides those of its own and of the top level that are no room.
ROOMS = {
    "diffusion": set(),
    "models": set(),
    "data": set(),
    "tasks": {"models", "data", "diffusion"},
    "config": {"tasks", "models", "data", "diffusion"},
    "training": {"tasks", "models", "data", "diffusion"},
    "runs": {"training", "config", "tasks", "models", "data", "diffusion"},
    "evaluation": {"runs", "training", "config", "tasks", "models", "data", "diffusion"},
}
UP = {("runs/run.py", "evaluation")}  # within a function: `Run` has a method for what is evaluated


def imported(path):
    """{names of rooms and of modules of the top level} that a file imports of the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "ddpm_jax":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ddpm_jax."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ddpm_jax.")}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_those_below_alone(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for path in files:
        place = path.relative_to(PACKAGE).as_posix()
        wrong = (imported(path) & ({*ROOMS, "main", "command"} - {room})) - ROOMS[room]
        assert {(place, other) for other in wrong} <= UP, place


def test_what_is_in_no_room_imports_no_room_but_the_command():
    for path in PACKAGE.glob("*.py"):
        if path.stem not in ("main", "command", "__init__"):
            assert not imported(path) & ROOMS.keys(), path
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == ROOMS.keys()


def test_the_kernel_knows_of_nobody():
    """jax, numpy, chex, diffrax and Python: no Flax, no files."""
    for path in sorted((PACKAGE / "diffusion").rglob("*.py")):
        assert imported(path) <= {"diffusion"}, path
        tree = ast.walk(ast.parse(path.read_text()))
        names = {a.name.split(".")[0] for n in tree if isinstance(n, ast.Import) for a in n.names}
        assert not names & {"flax", "optax", "orbax", "ml_collections", "os", "pathlib"}, path


def test_older_config_files_find_what_they_import():
    from ddpm_jax import presets, variants
    from ddpm_jax.config import presets as presets_today
    from ddpm_jax.config import variants as variants_today

    assert presets is presets_today and variants is variants_today
    with pytest.raises(ImportError, match="nothing_of_the_kind"):
        from ddpm_jax import nothing_of_the_kind  # noqa: F401
