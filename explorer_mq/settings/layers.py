"""Reading settings from files, environment and command line, and laying them over each other.

A layer is a flat map from path to value and origin; an unknown key is refused while its origin is
known. :func:`merge` lays later layers over earlier ones: tables are merged, lists are replaced, and
a layer that changes the ``type`` of an engine drops the keys of the other engine below it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from explorer_mq.settings import reference
from explorer_mq.settings.reference import ENV_PREFIX, VARIANT_KEY
from explorer_mq_schemas.errors import ConfigError

_LIST_HINT = "`explorer-mq config show` lists all keys"


@dataclass(frozen=True, slots=True)
class Sourced:
    """A value and where it was given."""

    value: Any
    origin: str


Layer = dict[reference.Path, Sourced]


def read_layers(
    files: Sequence[Path],
    overrides: Sequence[tuple[str, str]],
    environ: Mapping[str, str],
) -> Iterator[Layer]:
    """Layers from weakest to strongest.

    Raises:
        ConfigError: a file is missing or no TOML, a key is unknown, or a section got a plain value.
    """
    for file in files:
        yield read_file(file)
    yield read_environ(environ)
    yield read_overrides(overrides)


def read_file(file: Path) -> Layer:
    """The layer of a TOML file.

    Raises:
        ConfigError: it is missing or no TOML, or has a key that does not exist.
    """
    try:
        with file.open("rb") as stream:
            tables = tomllib.load(stream)
    except FileNotFoundError as error:
        raise ConfigError(f"settings file {file} does not exist{_sibling(file)}") from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"settings file {file} cannot be read: {reason}") from error
    return _layer(_flatten(tables, ()), str(file))


def read_environ(environ: Mapping[str, str]) -> Layer:
    """The layer of the variables ``EXPLORER_MQ_SECTION__FIELD``; deeper ones are the stronger.

    Raises:
        ConfigError: a variable with our prefix names no setting.
    """
    layer: Layer = {}
    ours = sorted(name for name in environ if name.startswith(ENV_PREFIX))
    for name in sorted(ours, key=lambda name: name.count("__")):
        path = tuple(name.removeprefix(ENV_PREFIX).lower().split("__"))
        layer = _over(layer, _text_layer(path, environ[name], name))
    return layer


def read_overrides(overrides: Sequence[tuple[str, str]]) -> Layer:
    """The layer of the flags, given as dotted path (``-`` or ``_``) and text; the last one wins.

    Raises:
        ConfigError: a flag names no setting.
    """
    layer: Layer = {}
    for dotted, text in overrides:
        path = tuple(dotted.replace("-", "_").split("."))
        layer = _over(layer, _text_layer(path, text, f"--{dotted}"))
    return layer


def merge(layers: Iterable[Layer]) -> Layer:
    """All layers as one; every value keeps the origin of the layer it came from."""
    merged: Layer = {}
    for layer in layers:
        merged = _over(_without_other_variants(merged, layer), layer)
    return merged


def nest(layer: Layer) -> dict[str, Any]:
    """The layer as nested tables."""
    tables: dict[str, Any] = {}
    for path, sourced in layer.items():
        table = tables
        for key in path[:-1]:
            table = table.setdefault(key, {})
        table[path[-1]] = sourced.value
    return tables


def _text_layer(path: reference.Path, text: str, origin: str) -> Layer:
    value = _parse(path, text)
    pairs = _flatten(value, path) if isinstance(value, dict) else [(path, value)]
    return _layer(pairs, origin)


def _parse(path: reference.Path, text: str) -> Any:
    """JSON first, text second; text alone where the setting is text, unless it is quoted."""
    entry = reference.find(path)
    if entry is not None and entry.takes_text and not text.startswith('"'):
        return None if text == "null" and entry.takes_none else text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _flatten(
    tables: Mapping[str, Any], path: reference.Path
) -> Iterator[tuple[reference.Path, Any]]:
    for key, value in tables.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, (*path, key))
        elif value != {}:
            yield (*path, key), value


def _layer(pairs: Iterable[tuple[reference.Path, Any]], origin: str) -> Layer:
    layer: Layer = {}
    for path, value in pairs:
        _check_known(path, origin)
        layer[path] = Sourced(value, origin)
    return layer


def _check_known(path: reference.Path, origin: str) -> None:
    where = located(path, origin)
    if path in reference.sections():
        raise ConfigError(
            f"{where}: a section, not a value; `explorer-mq config show {path[0]}` lists its keys"
        )
    if reference.find(path) is None:
        close = reference.nearest(path)
        hint = f"did you mean {_spelled(close, origin)}?" if close else _LIST_HINT
        raise ConfigError(f"{where}: no such setting; {hint}")


def located(path: reference.Path, origin: str) -> str:
    """Origin and path for a message; a variable or flag that spells the path says both."""
    dotted = ".".join(path)
    spelled = origin.replace("-", "_") == _spelled(dotted, origin).replace("-", "_")
    return origin if spelled and origin != dotted else f"{origin}: {dotted}"


def _spelled(dotted: str, origin: str) -> str:
    """A path the way ``origin`` writes it: as variable, flag or key."""
    if origin.startswith(ENV_PREFIX):
        return ENV_PREFIX + dotted.replace(".", "__").upper()
    return f"--{dotted.replace('_', '-')}" if origin.startswith("--") else dotted


def _over(lower: Layer, upper: Layer) -> Layer:
    """``upper`` laid over ``lower``; a value replaces what was set above or below its path."""
    kept = {
        path: value
        for path, value in lower.items()
        if not any(_nested(path, other) for other in upper)
    }
    return kept | upper


def _nested(one: reference.Path, other: reference.Path) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _without_other_variants(lower: Layer, upper: Layer) -> Layer:
    for root, default in reference.variant_roots().items():
        switch = upper.get((*root, VARIANT_KEY))
        before = lower.get((*root, VARIANT_KEY))
        if switch is not None and switch.value != (before.value if before else default):
            lower = {path: value for path, value in lower.items() if path[: len(root)] != root}
    return lower


def _sibling(file: Path) -> str:
    import difflib

    try:
        names = [path.name for path in file.parent.iterdir() if path.suffix == ".toml"]
    except OSError:
        return ""
    close = difflib.get_close_matches(file.name, names, n=1)
    return f"; did you mean {file.parent / close[0]}?" if close else ""
