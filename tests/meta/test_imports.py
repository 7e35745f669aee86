"""Who may import whom, by the source: {edge_node, coordinator} → export → models, and torch and flwr where named.

Read with ``ast`` and not by importing, so that an import inside a function counts too. What stands under
``if TYPE_CHECKING`` does not: nothing is loaded for it. ``export/flower_app`` is data that is never imported here.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import pytest

REPOSITORY: Final = Path(__file__).parents[2]
PACKAGES: Final = ("models", "export", "edge_node", "coordinator")
MAY_IMPORT: Final[Mapping[str, frozenset[str]]] = {
    "models": frozenset({"models"}),
    "export": frozenset({"export", "models"}),
    "edge_node": frozenset({"edge_node", "export", "models"}),
    "coordinator": frozenset({"coordinator", "export", "models"}),
}
MAY_IMPORT_HEAVY: Final[Mapping[str, tuple[str, ...]]] = {
    "torch": (
        "models/modalities/*.py",
        "models/perceptual.py",
        "models/privacy.py",
        "models/private_training.py",
        "models/training.py",
        "models/state.py",
        "export/backbones.py",
        "export/to_onnx.py",
        "edge_node/train.py",
        "edge_node/renew.py",
        "coordinator/gate.py",
        "coordinator/publish.py",
    ),
    "flwr": (
        "models/wire.py",
        "*/flower.py",
        "*/client_app.py",
        "*/server_app.py",
        "coordinator/asking.py",
        "coordinator/rounds.py",
        "coordinator/veiled.py",
    ),
}
EXEMPT: Final = "export/flower_app/"
FOR_A_GALLERY: Final = (
    "export.files",
    "export.fold",
    "export.manifest",
    "export.parity",
    "export.quantize",
    "export.release",
    "export.runtime",
    "export.signing",
    "export.weights",
    "models.codecs",
    "models.contract",
    "models.measures",
    "models.originality",
    "models.registry",
    "models.samplers",
    "models.update",
)

Imports = Mapping[str, frozenset[str]]
"""The modules that each file imports, by its path from the root."""


def read_imports(root: Path) -> Imports:
    """The imports of every source file of the four packages."""
    return {
        path: frozenset(_imports(ast.parse(file.read_text()), path))
        for package in PACKAGES
        for file in sorted((root / package).rglob("*.py"))
        if not (path := file.relative_to(root).as_posix()).startswith(EXEMPT)
    }


def _imports(node: ast.AST, path: str) -> Iterator[str]:
    if isinstance(node, ast.If) and _is_type_checking(node.test):
        children: list[ast.AST] = list(node.orelse)
    else:
        children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        base = _absolute(node, path)
        yield base
        # ``from package import module`` may name a module; what is no module finds no file later on.
        yield from (f"{base}.{alias.name}" for alias in node.names)
    for child in children:
        yield from _imports(child, path)


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _absolute(node: ast.ImportFrom, path: str) -> str:
    if not node.level:
        return node.module or ""
    parents = path.split("/")[: -node.level]
    return ".".join([*parents, *([node.module] if node.module else [])])


def wrong_layers(imports: Imports) -> list[str]:
    """Imports that go up, or from one program into the other."""
    return [
        f"{path} imports {name}"
        for path, names in imports.items()
        for name in sorted(names)
        if (top := name.partition(".")[0]) in PACKAGES and top not in MAY_IMPORT[path.partition("/")[0]]
    ]


def wrong_weights(imports: Imports) -> list[str]:
    """Imports of torch or flwr where neither may be."""
    return [
        f"{path} imports {top}"
        for path, names in imports.items()
        for top, allowed in MAY_IMPORT_HEAVY.items()
        if any(name.partition(".")[0] == top for name in names) and not any(fnmatch(path, p) for p in allowed)
    ]


def busy_inits(imports: Imports) -> list[str]:
    """Packages whose mere import imports something."""
    return [path for path, names in imports.items() if path.endswith("__init__.py") and names]


def cycles(imports: Imports) -> list[str]:
    """A module that reaches itself, with the way it takes."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in imports}
    edges = {module: sorted((imports[path] & modules.keys()) - _packages_of(module)) for module, path in modules.items()}
    found: list[str] = []
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        if module in way:
            found.append(" → ".join([*way[way.index(module) :], module]))
        elif module not in done:
            for following in edges[module]:
                visit(following, (*way, module))
            done.add(module)

    for module in edges:
        visit(module, ())
    return found


def _packages_of(module: str) -> set[str]:
    """A module's own packages: they are loaded before it, and import nothing (see ``busy_inits``)."""
    parts = module.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts))}


@pytest.fixture(scope="module")
def ours() -> Imports:
    return read_imports(REPOSITORY)


def test_the_source_was_really_read(ours: Imports) -> None:
    assert "models.contract" in ours["export/manifest.py"]
    assert "torch" in ours["models/training.py"]
    assert "flwr.app" in ours["models/wire.py"]


def test_imports_only_go_down(ours: Imports) -> None:
    assert wrong_layers(ours) == []


def test_torch_and_flower_stay_where_they_are_named(ours: Imports) -> None:
    assert wrong_weights(ours) == []


def test_no_package_imports_anything_by_itself(ours: Imports) -> None:
    assert busy_inits(ours) == []


def test_no_module_reaches_itself(ours: Imports) -> None:
    assert cycles(ours) == []


def test_what_a_gallery_needs_loads_neither_torch_nor_flower() -> None:
    modules = ", ".join(FOR_A_GALLERY)
    script = f"import {modules}, sys; print(sorted({{'torch', 'flwr', 'ray', 'grpc'}} & set(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
    )

    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


# What follows shows that each rule can fail.


def tree(root: Path, files: Mapping[str, str]) -> Imports:
    """The imports of a source tree made up for one test."""
    for path, source in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(source)
    return read_imports(root)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/a.py", "import export.files"),
        ("models/a.py", "from export import files"),
        ("models/a.py", "def late():\n    from edge_node.paint import paint"),
        ("models/deep/a.py", "from ...export import files"),
        ("export/a.py", "import coordinator"),
        ("edge_node/a.py", "from coordinator.gate import judge"),
        ("coordinator/a.py", "try:\n    import edge_node.train\nexcept ImportError:\n    pass"),
    ],
)
def test_an_import_that_goes_up_or_across_is_caught(tmp_path: Path, path: str, source: str) -> None:
    assert len({line.split(" ")[0] for line in wrong_layers(tree(tmp_path, {path: source}))}) == 1


@pytest.mark.parametrize(
    ("path", "source", "caught"),
    [
        ("models/samplers.py", "import torch", ["models/samplers.py imports torch"]),
        ("edge_node/kiosk/app.py", "from torch.nn import Module", ["edge_node/kiosk/app.py imports torch"]),
        ("export/fold.py", "def f():\n    import torch.nn", ["export/fold.py imports torch"]),
        ("models/update.py", "from flwr.app import Array", ["models/update.py imports flwr"]),
        ("edge_node/paint.py", "import flwr as f", ["edge_node/paint.py imports flwr"]),
        ("models/samplers.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", []),
        (
            "models/samplers.py",
            "if TYPE_CHECKING:\n    x = 1\nelse:\n    import torch",
            ["models/samplers.py imports torch"],
        ),
        ("models/samplers.py", "import torchless", []),
        ("models/modalities/new.py", "import torch", []),
        ("edge_node/flower.py", "import flwr", []),
    ],
)
def test_a_heavy_import_in_the_wrong_place_is_caught(tmp_path: Path, path: str, source: str, caught: list[str]) -> None:
    assert wrong_weights(tree(tmp_path, {path: source})) == caught


def test_a_package_that_imports_something_is_caught(tmp_path: Path) -> None:
    files = {"models/__init__.py": "from models.update import Update", "export/__init__.py": '"""Words."""'}

    assert busy_inits(tree(tmp_path, files)) == ["models/__init__.py"]


def test_a_cycle_is_caught_however_long_and_an_import_under_type_checking_makes_none(tmp_path: Path) -> None:
    files = {
        "models/a.py": "from models import b",
        "models/b.py": "from models.c import thing",
        "models/c.py": "def late():\n    import models.a",
        "models/d.py": "if TYPE_CHECKING:\n    from models.e import E",
        "models/e.py": "from models.d import D",
    }

    assert cycles(tree(tmp_path, files)) == ["models.a → models.b → models.c → models.a"]


def test_the_flower_app_is_data_and_exempt(tmp_path: Path) -> None:
    files = {"export/flower_app/sfumato_app/client.py": "from edge_node.client_app import app"}

    assert tree(tmp_path, files) == {}
