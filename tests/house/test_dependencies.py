"""pyproject.toml says what we need, requirements.lock what we install; both are read here as people's tools do."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ROOMS = ("shards", "configs", "pipeline", "tokenize_jobs", "train", "inference", "evaluation")


def declared() -> list[Requirement]:
    """Base dependencies and those of every extra."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    return [Requirement(line) for line in lines]


def pins() -> dict[str, Version]:
    """Package -> version of the lock."""
    found: dict[str, Version] = {}
    for line in (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            (specifier,) = Requirement(line).specifier
            assert specifier.operator == "==", line
            found[canonicalize_name(Requirement(line).name)] = Version(specifier.version)
    return found


def test_the_lock_pins_every_declared_dependency_within_its_range():
    """A range that the lock breaks is either a wrong range or a stale lock."""
    lock = pins()
    for requirement in declared():
        assert canonicalize_name(requirement.name) in lock, f"{requirement} is declared and not locked: make lock"
        assert lock[canonicalize_name(requirement.name)] in requirement.specifier, f"{requirement}: make lock"


def test_the_lock_is_closed_so_that_nothing_is_left_to_resolve():
    """Set-up installs with --no-deps: a dependency of a dependency that is missing here would be missing there."""
    lock = pins()
    todo, seen = declared(), set[tuple[str, frozenset[str]]]()
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        assert key[0] in lock, f"{requirement} is needed and not locked: make lock"
        for line in metadata.requires(requirement.name) or []:
            child = Requirement(line)
            wanted = [{"extra": extra} for extra in requirement.extras] or [{"extra": ""}]
            if child.marker is None or any(child.marker.evaluate(environment) for environment in wanted):
                todo.append(child)
    build_tools = {"setuptools", "wheel"}
    assert set(lock) - {name for name, _ in seen} <= build_tools, "locked, and needed by nothing: make lock"


def test_the_lock_names_no_place_to_download_from():
    """It must work behind any mirror."""
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if not line.startswith("#") and re.search(r"://|^-|@", line)]


@pytest.mark.parametrize("room", ROOMS)
def test_every_imported_package_is_declared(room: str):
    """What a room imports it asks for by name, instead of living off somebody else's dependency."""
    names = {canonicalize_name(requirement.name) for requirement in declared()}
    providers = metadata.packages_distributions()
    undeclared: dict[str, set[str]] = {}
    for path in (REPOSITORY / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            imported: list[str] = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported = [node.module]
            for name in (full.split(".")[0] for full in imported):
                if name in sys.stdlib_module_names or name in ROOMS or name == "synthesis":
                    continue
                if not {canonicalize_name(provider) for provider in providers.get(name, [name])} & names:
                    undeclared.setdefault(name, set()).add(path.name)
    assert not undeclared


def test_every_command_of_the_project_leads_to_a_function():
    """A console script that points nowhere fails on the user's machine, not on ours."""
    for command, target in PROJECT["scripts"].items():
        module, function = target.split(":")
        path = REPOSITORY / (module.replace(".", "/") + ".py")
        assert path.is_file(), f"{command}: no {path.relative_to(REPOSITORY)}"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        imported = {
            alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        assert function in defined | imported, f"{command}: {module} has no {function}"
