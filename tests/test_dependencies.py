"""Dependencies point one way: the graph of the design, as data, against the imports as they are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "apex_zmq"

# What each part may import of the package beside itself; a part is a module or a subpackage.
# Parts higher up may use those further down, never the other way round.
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "files": set(),
    "types": set(),
    "config": {"errors"},
    "validation": {"config"},
    "configure": {"config", "validation"},
    "nstep": {"types"},
    "exploration": {"types"},
    "importance": {"types"},
    "losses": set(),
    "networks": {"types", "config", "errors"},
    "optimizers": {"config"},
    "checkpoint": {"errors", "files", "optimizers"},
    "replay": {"types", "config", "files"},
    "rundir": {"config", "files"},
    "logs": {"config"},
    "envs": {"types", "config", "errors"},
    "picture": {"types"},
    "video": {"types", "errors"},
    "window": {"types", "errors"},
    "wire": {"types"},
    "signature": {"config", "envs"},
    "segments": {"types", "nstep", "wire"},
    "telemetry": {"wire"},
    "metrics": {"config", "telemetry", "wire"},
    "view": {"telemetry", "wire"},
    "verdict": {"view"},
    "episodes": {"wire"},
    "board": {"config", "configure"},
    "ranks": {"config"},
    "training": {
        "types",
        "config",
        "ranks",
        "envs",
        "importance",
        "losses",
        "networks",
        "optimizers",
        "checkpoint",
    },
    "keys": {"config", "files"},
    "guard": {"keys"},
    "transport": {"types", "config", "files", "wire", "keys", "guard"},
    "top": {"keys", "telemetry", "transport", "verdict", "view", "wire"},
    "roles": {
        "types",
        "errors",
        "files",
        "config",
        "configure",
        "exploration",
        "importance",
        "networks",
        "checkpoint",
        "replay",
        "rundir",
        "envs",
        "wire",
        "signature",
        "segments",
        "telemetry",
        "metrics",
        "board",
        "episodes",
        "logs",
        "ranks",
        "training",
        "transport",
        "keys",
        "guard",
        "picture",
        "video",
        "window",
    },
    "doctor": {
        "config",
        "envs",
        "errors",
        "guard",
        "keys",
        "networks",
        "replay",
        "rundir",
        "signature",
        "training",
        "transport",
        "wire",
    },
    "launch": {"config", "configure", "logs", "rundir"},
    "options": {"__init__", "config", "configure"},
    "config_doc": {"config", "configure", "options"},
    "program": {"config", "configure", "errors", "logs"},
    "tools": {
        "__init__",
        "options",
        "program",
        "config",
        "validation",
        "errors",
        "keys",
        "checkpoint",
        "doctor",
        "roles",
        "top",
        "video",
    },
    "cli": {
        "options",
        "program",
        "tools",
        "config",
        "validation",
        "checkpoint",
        "replay",
        "rundir",
        "logs",
        "ranks",
        "roles",
        "launch",
        "window",
    },
    "__main__": {"cli", "doctor"},
}
# Third-party packages and the only parts that may import them.
ONLY_IN: dict[str, set[str]] = {
    "zmq": {"transport", "guard", "keys"},
    "lz4": {"wire"},
    "msgspec": {"wire", "config", "configure", "telemetry"},
    "numba": {"wire", "replay", "envs"},
    "llvmlite": {"wire"},
    "torch": {"losses", "networks", "optimizers", "checkpoint", "ranks", "training", "board", "roles", "doctor"},
    "gymnasium": {"envs"},
    "stable_retro": {"envs"},
    "yaml": {"configure"},
    "PIL": {"picture", "video"},
    "imageio_ffmpeg": {"video"},
    "pygame": {"window"},
    "rich": {"top"},
    "prometheus_client": {"metrics"},
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
def test_third_party_packages_stay_in_their_place(path: Path) -> None:
    packages = {name.partition(".")[0] for name in imports(path)}
    assert {
        package for package, parts in ONLY_IN.items() if package in packages and part_of(path) not in parts
    } == set()


def test_the_graph_has_no_cycle() -> None:
    graph = {part: set(below) for part, below in ALLOWED.items()}
    while graph:
        leaves = {part for part, below in graph.items() if not below & graph.keys()}
        assert leaves, f"a cycle among {sorted(graph)}"
        graph = {part: below for part, below in graph.items() if part not in leaves}


def test_what_serves_prometheus_is_imported_by_those_who_serve_it() -> None:
    tree = ast.parse((PACKAGE / "metrics.py").read_text())
    at_start = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not any(str(module).startswith("prometheus_client") for module in at_start)


def test_roles_that_need_no_torch_do_not_import_it() -> None:
    without = {"replay.py", "shipper.py", "status.py", "parameters.py", "forwarder.py", "__init__.py"}
    for name in without:
        assert not any(each.partition(".")[0] == "torch" for each in imports(PACKAGE / "roles" / name))
