"""The import directions that keep the house in order, read from the source."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pmemx"
FILES = sorted(PACKAGE.rglob("*.py"))
AXES = {
    folder.name
    for folder in PACKAGE.iterdir()
    if folder.is_dir()
    and folder.name not in ("core", "runtime", "lit", "library", "stage", "run", "report", "exchange", "__pycache__")
}
# A layer may import itself and what stands here.
MAY_IMPORT = {axis: {"core"} for axis in AXES} | {
    "core": set(),
    "runtime": {"core"},
    "lit": {"core", "runtime"},
    "library": {"core"},
    "stage": {"core", "runtime", "lit", "library"},
    "run": {"core", "runtime", "stage", "preflight"},
    "report": {"core"},
    "exchange": {"core", "store", "export"},
    "page": {"core", "store"},
    "preflight": {"core", "stage", "choices"},
    "choices": {"core"},
    "exit_codes": {"core"},
    "completion": set(),
    "cli_bank": {"core", "store", "export", "exchange", "page", "exit_codes"},
    "cli_run": {"core", "stage", "preflight", "report", "choices", "exit_codes"},
    "cli": {"core", "report", "choices", "cli_bank", "cli_run", "exit_codes", "completion"},
    "tested_versions": set(),
    "__init__": {"run", "tested_versions"},
}
LIBRARIES = {
    "transformers": {"base_model", "runtime", "export"},
    "peft": {"adapter", "merge", "export", "transform"},
    "lightning": {"lit"},
    "hydra": {"cli_run", "preflight", "stage"},
    "omegaconf": {"cli_run", "preflight", "run", "stage"},
    "datasets": {"data"},
    "matplotlib": {"report"},
    "sqlalchemy": {"store"},
    "alembic": {"store"},
    "fsspec": {"store"},
    "fastapi": {"page"},
    "starlette": {"page"},
    "uvicorn": {"page"},
    "jinja2": {"page"},
    "huggingface_hub": {"exchange"},
    "wandb": set(),
    "pickle": set(),
}


def layer(file: Path) -> str:
    """The first part of a module's name below pmemx."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function; imports for the type checker alone are none."""
    typing_only = {
        child
        for node in ast.walk(tree(file))
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree(file)):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def part(module: str, index: int) -> str:
    """One part of a dotted name, empty where it is shorter: "pmemx.core.block" has core at 1."""
    return [*module.split("."), "", ""][index]


def test_layers_import_only_the_layers_below_them():
    found = {name(file): {part(module, 1) for module in imports(file) if part(module, 0) == "pmemx"} for file in FILES}
    allowed = {name(file): MAY_IMPORT[layer(file)] | {layer(file), ""} for file in FILES}
    assert {file: layers - allowed[file] for file, layers in found.items() if layers - allowed[file]} == {}


def test_libraries_stay_where_they_belong():
    found = {name(file): {part(module, 0) for module in imports(file)} & LIBRARIES.keys() for file in FILES}
    homeless = {
        name(file): {library for library in LIBRARIES if layer(file) not in LIBRARIES[library]} for file in FILES
    }
    assert {file: found[file] & homeless[file] for file in found if found[file] & homeless[file]} == {}


def test_nothing_is_unpickled():
    calls = {
        name(file): {ast.unparse(n.func) for n in ast.walk(tree(file)) if isinstance(n, ast.Call)} for file in FILES
    }
    assert [file for file, called in calls.items() if called & {"torch.load", "torch.save"}] == []


def test_modules_begin_with_a_sentence():
    first = {name(file): (ast.get_docstring(tree(file)) or "").split("\n")[0] for file in FILES}
    assert [file for file, line in first.items() if not line.endswith((".", ":"))] == []


def test_every_folder_is_a_layer():
    assert {layer(file) for file in FILES} <= MAY_IMPORT.keys()


def test_layers_form_no_cycle():
    below = {own: set(MAY_IMPORT[own]) for own in MAY_IMPORT}
    while free := [own for own in below if not below[own]]:
        for own in free:
            del below[own]
        for rest in below.values():
            rest.difference_update(free)
    assert below == {}
