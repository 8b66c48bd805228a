"""Dependencies point one way: the graph of rooms, as data, against the imports as they are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "apex_zmq"

# What each room, or module of the top level, may import of the package beside itself: rooms further down
# never import those higher up.
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "types": set(),
    "config": {"errors"},
    "wire": {"types"},
    "rundir": {"errors", "wire"},
    "envs": {"types", "errors", "config"},
    "signature": {"config", "envs"},
    "agent": {"types", "errors", "config", "envs"},
    "replay": {"types", "errors", "config", "rundir"},
    "net": {"types", "errors", "config", "wire", "rundir", "signature"},
    "watch": {"errors", "config", "wire", "rundir", "envs", "signature", "agent", "replay", "net"},
    "play": {"types", "errors", "config", "wire", "rundir", "envs", "signature", "agent", "net", "watch"},
    "roles": {
        "types",
        "errors",
        "config",
        "wire",
        "rundir",
        "envs",
        "signature",
        "agent",
        "replay",
        "net",
        "watch",
        "play",
    },
    "cli": {
        "__init__",
        "errors",
        "config",
        "envs",
        "wire",
        "rundir",
        "agent",
        "replay",
        "net",
        "watch",
        "play",
        "roles",
    },
    "__main__": {"errors", "cli"},
}
# Third-party packages and the only rooms, or modules of them, that may import them.
ONLY_IN: dict[str, set[str]] = {
    "zmq": {"net"},
    "lz4": {"wire"},
    "msgspec": {"wire", "config", "watch/stats"},
    "numba": {"wire", "replay", "envs"},
    "llvmlite": {"wire"},
    "torch": {
        "agent",
        "rundir/checkpoint",
        "play",
        "roles/actor/loop",
        "roles/learner",
        "watch/tensorboard",
        "watch/doctor",
    },
    "safetensors": {"rundir/checkpoint"},
    "tensorboard": {"watch/tensorboard"},
    "gymnasium": {"envs"},
    "stable_retro": {"envs"},
    "yaml": {"config"},
    "PIL": {"play"},
    "imageio_ffmpeg": {"play/video"},
    "pygame": {"play/window"},
    "rich": {"watch/top"},
    "prometheus_client": {"watch/prometheus"},
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Dotted names of all that a module imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def parts_imported(path: Path) -> set[str]:
    parts = set()
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == PACKAGE.name:
            part = rest.partition(".")[0]
            exists = (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").exists()
            parts.add(part if exists else "__init__")  # such as __version__
    return parts


def test_every_part_is_in_the_graph() -> None:
    assert {part_of(path) for path in MODULES} == ALLOWED.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_the_graph_allows(path: Path) -> None:
    part = part_of(path)
    assert parts_imported(path) - {part} <= ALLOWED[part]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_third_party_packages_are_imported_only_where_allowed(path: Path) -> None:
    packages = {name.partition(".")[0] for name in imports(path)}
    module = str(path.relative_to(PACKAGE).with_suffix(""))
    for package, places in ONLY_IN.items():
        assert package not in packages or any(f"{module}/".startswith(f"{place}/") for place in places), package


def test_the_graph_has_no_cycle() -> None:
    graph = {part: set(below) for part, below in ALLOWED.items()}
    while graph:
        leaves = {part for part, below in graph.items() if not below & graph.keys()}
        assert leaves, f"a cycle among {sorted(graph)}"
        graph = {part: below for part, below in graph.items() if part not in leaves}


def test_prometheus_client_is_not_imported_at_module_level() -> None:
    tree = ast.parse((PACKAGE / "watch" / "prometheus.py").read_text())
    at_start = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not any(str(module).startswith("prometheus_client") for module in at_start)


@pytest.mark.parametrize(
    "module", ["roles.replay", "roles.forwarder", "roles.actor.shipper", "net.parameters", "cli.main"]
)
def test_torch_free_modules_do_not_import_torch(module: str) -> None:
    code = f"import sys, apex_zmq.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
