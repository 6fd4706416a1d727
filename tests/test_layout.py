"""The layers of the package: imports go down only, and not in circles."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mspose"
LAYERS = (
    ("errors", "libraries", "openmp", "resources", "files", "poses", "provenance", "escaping"),
    ("plotting", "distributed", "allocator"),
    ("config", "run", "metrics", "verdict"),
    ("losses", "models", "data"),
    ("attention", "inference"),
    ("training", "evaluation", "tensorboard_log"),
    ("studies",),
    ("tools",),
    ("commands", "cli", "__main__"),
)  # fmt: skip
"""Files and folders of `mspose/`, from the lowest layer up."""
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports anywhere in it, types alone left out."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
        waiting += ast.iter_child_nodes(node)
    return found & MODULES.keys() - {"mspose", module_name(path)}


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"mspose"}))
def test_imports_go_down_the_layers(module):
    layer = LAYER[module.split(".")[1]]
    upward = [name for name in imports(MODULES[module]) if LAYER[name.split(".")[1]] > layer]
    assert not upward, f"{module} imports {', '.join(upward)}"


def test_there_are_no_circles():
    graph = {module: imports(path) for module, path in MODULES.items() if module != "mspose"}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_commands_start_without_the_heavy_libraries_that_they_do_not_need():
    code = """
import sys
from mspose import cli
cli.overview()
print({"torch", "pandas", "numpy"} & sys.modules.keys())
import mspose.studies.tables, mspose.tools.importing.importer
import mspose.tools.checking.check, mspose.tools.viewer.server, mspose.data.preparation
print({"torch"} & sys.modules.keys())
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nset()\n"
