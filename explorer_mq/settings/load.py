"""From layers to checked settings; every refusal is one line that names origin, key and value."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from explorer_mq.settings import reference
from explorer_mq.settings.layers import Layer, located, merge, nest, read_layers
from explorer_mq.settings.model import Settings
from explorer_mq_schemas.errors import ConfigError

_USERINFO = re.compile(r"//[^/@\s]*@")
_SHOWN_CHARS = 80
_COMPLAINTS = {
    "too_short": "must not be empty",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "tuple_type": "expected a list",
    "dict_type": "expected a table",
}


def load_settings(
    files: Sequence[Path] = (),
    overrides: Sequence[tuple[str, str]] = (),
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from defaults < ``files`` left to right < ``environ`` < ``overrides``.

    Tables are merged, lists are replaced; a layer that changes an engine's ``type`` drops the keys
    of the other engine. ``overrides`` are dotted paths with the text of a command line.

    Raises:
        ConfigError: a file is missing, a key is unknown, a value is not valid.
    """
    merged = merge(read_layers(files, overrides, environ or {}))
    try:
        return Settings.model_validate(nest(merged))
    except ValidationError as error:
        raise ConfigError(_complaint(error, merged)) from error


def sources(
    files: Sequence[Path] = (),
    overrides: Sequence[tuple[str, str]] = (),
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Where each value that is not a default was given: dotted path to file, variable or flag.

    Raises:
        ConfigError: as :func:`load_settings`, for keys.
    """
    merged = merge(read_layers(files, overrides, environ or {}))
    return {".".join(path): sourced.origin for path, sourced in merged.items()}


def shown(value: Any) -> Any:
    """``value`` without user and password of urls in it."""
    return _USERINFO.sub("//", value) if isinstance(value, str) else value


def _complaint(error: ValidationError, merged: Layer) -> str:
    """The first defect: origin, key, what was expected, what was got, what may have been meant."""
    first = error.errors(include_url=False)[0]
    path, origin = _place(first["loc"], merged)
    if first["type"] == "union_tag_invalid":
        path = (*path, reference.VARIANT_KEY)
        where = located(path, merged[path].origin)
        return (
            f"{where}: must be one of {first['ctx']['expected_tags']} (got {merged[path].value!r})"
        )
    where = located(path, origin)
    if first["type"] == "extra_forbidden":
        tag = merged.get((*path[:-1], reference.VARIANT_KEY))
        variant = tag.value if tag else reference.variant_roots().get(path[:-1], "")
        return f"{where}: no setting of type {variant!r}; drop it, or set another type"
    got = str(shown(str(first["input"])))[:_SHOWN_CHARS]
    return f"{where}: {_expectation(first)} (got {got!r})"


def _expectation(first: Mapping[str, Any]) -> str:
    text = str(first["msg"]).removeprefix("Value error, ")
    text = text.replace("Input should be", "must be")
    return _COMPLAINTS.get(first["type"], text)


def _place(loc: tuple[int | str, ...], merged: Layer) -> tuple[reference.Path, str]:
    """Path and origin of a defect; ``loc`` also holds list indices and the tag of a variant."""
    path: reference.Path = ()
    for part in map(str, loc):
        below = (*path, part)
        if below in reference.sections() or reference.find(below) or below in merged:
            path = below
    origin = next((found.origin for at, found in merged.items() if at[: len(path)] == path), "")
    return path, origin or "settings"
