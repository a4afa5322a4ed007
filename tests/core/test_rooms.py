"""The rooms of the package and the one direction in which they import each other.

Every import statement is read from the source, those inside functions too. Imports for types alone are tested apart: they cost
nothing at run time, but what a room's signatures name it still depends on.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = (
    *("contract", "noise", "journal", "kernels", "ops", "perturb", "methods", "optim"),
    *("finetune", "federated", "simulate", "integrations", "cli"),
)
"""From the ground up; `kernels` is the folder beside the package, installed as blockzo.kernels."""
FEDERATED = ("sums", "signing", "privacy", "protocol", "secagg", ("client", "server"), "flower")
"""Client and server stand side by side: neither imports the other."""
ORDERS = {"blockzo": ROOMS, "blockzo.federated": FEDERATED}
MOST_ROOMS = 13
DOORS = ("__init__", "__main__", "moved")
RUN, TYPES = "at run time", "for types"
KNOWN_CIRCLES: list[set[str]] = []
"""To be untied; nothing may be added."""


@dataclass(frozen=True)
class Import:
    """One module that a statement imports. `kind`: RUN or TYPES."""

    importer: str
    imported: str
    place: str
    kind: str


def modules_of(root: Path) -> dict[str, Path]:
    """Module name -> file."""
    found = {}
    for folder, package in ((root / "blockzo", "blockzo"), (root / "kernels", "blockzo.kernels")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def homes_of(door: Path) -> dict[str, str]:
    """The public names of `blockzo`, loaded at first use: name -> module that holds it."""
    for node in ast.parse(door.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_HOMES":
            return dict(ast.literal_eval(node.value))
    return {}


def imports_of(root: Path) -> list[Import]:
    """Every import of one module of the package by another. A public name of `blockzo` counts as its home."""
    modules = modules_of(root)
    homes = homes_of(root / "blockzo" / "__init__.py")
    found = []
    for name, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        for_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for statement in node.body
            for inner in ast.walk(statement)
        }
        for node in ast.walk(tree):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            kind = TYPES if id(node) in for_types else RUN
            place = f"{path.relative_to(root)}:{node.lineno}"
            for full in _named(node, package):
                target = full if full in modules else full.rpartition(".")[0]
                if target == "blockzo":
                    target = homes.get(full.rpartition(".")[2], target)
                if target in modules and target != name:
                    found.append(Import(name, target, place, kind))
    return found


def _named(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([node.module] if node.module else [])])
    yield from (f"{base}.{alias.name}" for alias in node.names)


def room_of(module: str, package: str) -> str | None:
    """The room of `package` that a module is in; None for the package's own doors and what lies elsewhere."""
    if not module.startswith(package + "."):
        return None
    room = module.removeprefix(package + ".").partition(".")[0]
    return None if room in DOORS else room


def wrong(imports: list[Import], package: str, kind: str) -> list[str]:
    """What each import that runs against the order does wrong, and what to do."""
    levels: dict[str, int] = {}
    for level, rooms in enumerate(ORDERS[package]):
        levels |= dict.fromkeys((rooms,) if isinstance(rooms, str) else rooms, level)
    found = []
    for one in imports:
        above, below = room_of(one.importer, package), room_of(one.imported, package)
        if one.kind != kind or above is None or below is None or above == below:
            continue
        if above not in levels or below not in levels:
            found.append(f"{one.place}: {above if above not in levels else below} is no room that this test knows")
        elif levels[below] >= levels[above]:
            found.append(
                f"{one.place}: {one.importer} imports {one.imported} ({kind}), and {below} does not lie below {above}; move "
                f"what both need into {above} or further down, or hand it over as an argument from above"
            )
    return found


def circles(imports: list[Import]) -> list[set[str]]:
    """Modules that need each other at run time, as sets (Tarjan's strongly connected components)."""
    needs: dict[str, list[str]] = {}
    for one in imports:
        if one.kind == RUN and one.importer != "blockzo":
            needs.setdefault(one.importer, []).append(one.imported)
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(module: str) -> None:
        numbers[module] = lowest[module] = len(numbers)
        stack.append(module)
        for needed in needs.get(module, ()):
            if needed not in numbers:
                visit(needed)
                lowest[module] = min(lowest[module], lowest[needed])
            elif needed in stack:
                lowest[module] = min(lowest[module], numbers[needed])
        if lowest[module] == numbers[module]:
            at = stack.index(module)
            found.append(set(stack[at:]))
            del stack[at:]

    for module in list(needs):
        if module not in numbers:
            visit(module)
    return [circle for circle in found if len(circle) > 1]


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return imports_of(ROOT)


def test_the_package_has_few_rooms_and_this_test_knows_each():
    held = {p.stem for p in (ROOT / "blockzo").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    rooms = held - set(DOORS)
    assert rooms <= set(ROOMS), f"new at the top of blockzo/: {sorted(rooms - set(ROOMS))}; put it into a room"
    assert len(rooms) <= MOST_ROOMS


@pytest.mark.parametrize("package", ORDERS)
def test_rooms_import_downwards(imports, package):
    found = wrong(imports, package, RUN)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("package", ORDERS)
def test_types_are_taken_from_below_too(imports, package):
    found = wrong(imports, package, TYPES)
    assert not found, "\n".join(found)


def test_no_modules_need_each_other(imports):
    found = [sorted(circle) for circle in circles(imports) if circle not in KNOWN_CIRCLES]
    assert not found, (
        f"{found} import each other in a circle (inside functions counts); move what both need into one below"
    )


def made(folder: Path, files: dict[str, str]) -> list[Import]:
    for name, text in {"blockzo/__init__.py": "_HOMES = {'ZO': 'blockzo.optim.zo'}", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return imports_of(folder)


@pytest.mark.parametrize("text", ["import blockzo.optim.zo", "from blockzo import ZO", "from ..optim import zo"])
def test_a_wrong_import_is_found_and_told(tmp_path, text):
    files = {"blockzo/ops/steps.py": f"def late():\n    {text}\n", "blockzo/optim/zo.py": ""}
    (told,) = wrong(made(tmp_path, files), "blockzo", RUN)
    assert told.startswith("blockzo/ops/steps.py:2: blockzo.ops.steps imports blockzo.optim.zo (at run time)")
    assert "optim does not lie below ops; move" in told


def test_an_import_for_types_is_told_apart(tmp_path):
    text = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from blockzo.federated.server.server import Server\n"
    )
    found = made(tmp_path, {"blockzo/federated/client/client.py": text, "blockzo/federated/server/server.py": ""})
    assert not wrong(found, "blockzo.federated", RUN) and not circles(found)
    (told,) = wrong(found, "blockzo.federated", TYPES)
    assert "client.py:3" in told and "server does not lie below client" in told


def test_an_unknown_room_and_a_circle_are_found(tmp_path):
    files = {
        "blockzo/helpers.py": "from blockzo.noise import Noise",
        "blockzo/noise.py": "def late():\n    import blockzo.helpers",
    }
    found = made(tmp_path, files)
    assert ["helpers is no room that this test knows" in told for told in wrong(found, "blockzo", RUN)] == [True, True]
    assert circles(found) == [{"blockzo.noise", "blockzo.helpers"}]
