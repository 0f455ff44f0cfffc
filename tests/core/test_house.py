"""The structure of the package: who may import whom, and how large anything may be."""

import ast
from pathlib import Path

import pytest

HCNN = Path(__file__).resolve().parents[2] / "hcnn"
FLOORS = [  # a module imports what stands before it, what stands on its floor, or its own sub-package
    {"paths", "settings", "device"}, {"geometry"}, {"counts", "architecture", "reference"}, {"operators"},
    {"normalisation"}, {"network"},
    {"data"}, {"training"}, {"companion"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FACE = {"__init__", "__main__"}  # of the package: what users see


def imported(path, root):
    """The rooms of hcnn that a module imports anywhere in its text, functions included."""
    package = ("hcnn", *path.relative_to(root).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top == "hcnn" and rest != "__version__":
                yield rest.partition(".")[0]


def violations(root):
    """Every import against the order, as "module imports room"; the package's face, `hcnn`, is above all."""
    found = []
    for path in sorted(root.rglob("*.py")):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        for other in imported(path, root):
            above = FLOOR.get(other, len(FLOORS)) > FLOOR.get(room, len(FLOORS) + 1)
            if above or (room == "__init__" and other == "companion"):
                found.append(f"{path.relative_to(root)} imports {other}")
    return found


def test_every_module_has_its_floor():
    rooms = {path.stem for path in HCNN.glob("*.py")} | {path.parent.name for path in HCNN.glob("*/__init__.py")}
    assert rooms - FACE == set(FLOOR)


def test_modules_import_only_what_stands_before_them():
    assert violations(HCNN) == []


@pytest.mark.parametrize("module, line", [
    ("geometry.py", "from hcnn.companion.results import tables"),
    ("training/loop.py", "    import hcnn.companion.speed"),
    ("operators/deep/er.py", "    from ...companion import baselines"), ("data/cifar.py", "from hcnn import training"),
    ("network.py", "from . import data"), ("operators/tiled.py", "from hcnn import HCNN"),
    ("__init__.py", "from .companion import speed")])
def test_an_import_against_the_order_is_found_wherever_it_stands(module, line, tmp_path):
    path = tmp_path / module
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"def f():\n{line}\n" if line.startswith(" ") else f"{line}\n")
    assert len(violations(tmp_path)) == 1


def test_modules_classes_and_functions_are_short():
    limits, long = {ast.ClassDef: 150, ast.FunctionDef: 60}, []
    for path in sorted(HCNN.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        pieces = [(path.name, len(text.splitlines()), 300)]
        pieces += [(node.name, node.end_lineno - node.lineno + 1, limits[type(node)])
                   for node in ast.walk(ast.parse(text)) if type(node) in limits]
        long += [f"{path.relative_to(HCNN)}: {name} has {n} lines" for name, n, limit in pieces if n > limit]
    assert long == []


def of_one_system(path):
    """What a module does that Linux, macOS and Windows do not do alike, as "line N: what"."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = {alias.name for alias in node.names} if isinstance(node, (ast.Import, ast.ImportFrom)) else set()
        names |= {node.attr} if isinstance(node, ast.Attribute) else set()
        for name in sorted(names & {"fcntl", "resource", "pwd", "sched_getaffinity", "fork", "uname"}):
            yield f"line {node.lineno}: {name}"
        if isinstance(node, ast.Attribute) and node.attr.startswith("SIG") and node.attr not in ("SIGTERM", "SIGINT"):
            yield f"line {node.lineno}: {node.attr}"
        if isinstance(node, ast.Call):
            given, name = {keyword.arg for keyword in node.keywords}, getattr(node.func, "attr", None)
            modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            encoded = "encoding" in given or any(mode in ("rb", "wb", "utf-8", "ascii") for mode in modes)
            if getattr(node.func, "id", name) in ("open", "read_text", "write_text") and not encoded \
                    and ast.unparse(node.func) not in ("os.open", "Image.open"):
                yield f"line {node.lineno}: a text file without its encoding"
            if any(keyword.arg == "text" and ast.unparse(keyword.value) == "True" for keyword in node.keywords):
                yield f"line {node.lineno}: a process's text without its encoding"


def test_no_module_does_what_one_operating_system_alone_can():
    sources = [*sorted(HCNN.rglob("*.py")), *sorted(HCNN.parent.glob("*.py")), HCNN.parent / "notebooks" / "execute.py",
               *sorted((HCNN.parent / "site").glob("*.py"))]
    found = {str(path.relative_to(HCNN.parent)): list(of_one_system(path)) for path in sources}
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize("line", [
    "import fcntl", "n = len(os.sched_getaffinity(0))", "signal.signal(signal.SIGUSR1, f)", "open(name)",
    "text = path.read_text()", "run(command, text=True)", "path.write_text(text)"])
def test_what_one_operating_system_alone_can_do_is_found(line, tmp_path):
    (tmp_path / "module.py").write_text(line, encoding="utf-8")
    assert len(list(of_one_system(tmp_path / "module.py"))) == 1
