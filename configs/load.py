"""Every run is a file: TOML -> frozen pydantic models, unknown keys forbidden.

``base = "other.toml"`` (at most one, relative to the file) is merged under it; ``--set a.b=1`` goes on top. There is no
interpolation. A wrong key, type or value fails at once with the file, the path to the field and the fix.
"""

from __future__ import annotations

import argparse
import difflib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainSerializer, PlainValidator, ValidationError

from shards.errors import ConfigError
from shards.storage import is_remote, open_path


class Config(BaseModel):
    """Base of every config: frozen, unknown keys forbidden."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


ConfigT = TypeVar("ConfigT", bound=Config)


def _stored_path(value: Any) -> Path:
    if isinstance(value, (str, Path)):
        try:
            return open_path(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
    # A remote path that another config held already; it is no pathlib.Path.
    if is_remote(value) and hasattr(value, "storage_options"):
        return value
    raise ValueError("expected a path as text")


def _local_path(value: Path) -> Path:
    if value.parts and value.parts[0].endswith(":") and len(value.parts[0]) > 2:
        raise ValueError("expected a folder on this machine, for it is mapped into memory")
    return value


StoredPath = Annotated[Path, PlainValidator(_stored_path), PlainSerializer(str, return_type=str, when_used="json")]
"""A folder that may also lie in an object store (``s3://BUCKET/FOLDER``); see :mod:`shards.storage`."""
LocalPath = Annotated[Path, AfterValidator(_local_path)]
"""A folder of packed shards, which must lie on this machine."""


def parse_args(
    program: str,
    description: str,
    argv: Sequence[str] | None,
    *,
    several: bool = False,
    add: Callable[[argparse.ArgumentParser], object] = lambda parser: None,
) -> argparse.Namespace:
    """The one command-line grammar: ``CONFIG [--set key=value]... [--limit N] [--dry-run]``.

    Args:
        several: accept more than one CONFIG (``args.config`` is then a list).
        add: adds what one command has besides.
    """
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("config", type=Path, nargs="+" if several else None, metavar="CONFIG")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key, e.g. a.b=1")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="stop after N inputs")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, do nothing")
    add(parser)
    return parser.parse_args(argv)


def load_config(
    path: Path, kind: type[ConfigT], overrides: Sequence[str] = (), *, above: Mapping[str, Any] | None = None
) -> ConfigT:
    """Read, merge, override and validate one config.

    Args:
        above: tables that go on top of the file's, below the overrides.
        overrides: ``key.path=value`` strings; the value is read as TOML, or as a plain string if it is none.

    Raises:
        ConfigError: file missing, TOML broken, key unknown, type wrong; names file, key and fix.
    """
    data = _merge(read_toml(path), above or {})
    for override in overrides:
        _apply_override(data, override, path)
    return validate(data, kind, where=str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The merged tables of a file and its one ``base``, unvalidated."""
    data = _read_one(path)
    base = data.pop("base", None)
    if base is None:
        return data
    below = _read_one(path.parent / str(base))
    if "base" in below:
        raise ConfigError(f"{path}: base {base} has a base itself; one is allowed, name the last one or merge them")
    return _merge(below, data)


def _read_one(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ConfigError(f"{path}: expected a config file, found none; {_nearest_file(path)}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected TOML, found an error: {error}; mend that line") from error


def validate(data: Mapping[str, Any], kind: type[ConfigT], *, where: str) -> ConfigT:
    """Validate plain data; ``where`` is named in the error."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = [_explain(cast(Mapping[str, Any], problem), kind) for problem in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(lines)) from error


def _explain(problem: Mapping[str, Any], kind: type[BaseModel]) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "(the whole file)"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(kind, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if problem["type"] == "missing":
        return f"key {key!r} is required and missing; add it"
    return f"key {key!r}: {problem['msg']}, found {problem['input']!r}"


def _known_keys(kind: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Keys of the table at ``location``, which may lead through tables of tables (``datasets.speech``) and lists."""
    here: list[Any] = [kind]
    for part in location:
        # Where a value may be of several kinds, pydantic also names the kind it tried, which leads no further down.
        named = [one for one in here if getattr(one, "__name__", "") == part]
        here = [inner for one in here for inner in _inside(one, part)] or named or here
    return sorted({name for one in here for name in getattr(one, "model_fields", {})})


def _inside(kind: Any, part: str) -> list[Any]:
    """What may lie at ``part`` of a value of ``kind``, unions taken apart."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        field = kind.model_fields.get(part)
        return [] if field is None else _alternatives(field.annotation)
    # dict[str, X], Mapping[str, X], tuple[X, ...], list[X]: the value is the last that is a type.
    arguments = [argument for argument in get_args(kind) if argument is not Ellipsis]
    return _alternatives(arguments[-1]) if arguments else []


def _alternatives(kind: Any) -> list[Any]:
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [one for member in get_args(kind) for one in _alternatives(member)]
    return [kind]


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both_tables = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(cast(dict[str, Any], old), cast(dict[str, Any], value)) if both_tables else value
    return merged


def _apply_override(data: dict[str, Any], override: str, path: Path) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r} for {path}: expected key=value, e.g. --set output=DIR")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    table = data
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override!r} for {path}: {parent!r} is a value, not a table")
        table = cast(dict[str, Any], inner)
    table[last] = value


def _nearest_file(path: Path) -> str:
    siblings = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    return f"did you mean {path.parent / near[0]}?" if near else "give the path of a TOML file"
