"""What every control message has in common: frozen, versioned, JSON, tolerant of new fields."""

from __future__ import annotations

from typing import Any, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticSerializationError

from explorer_mq_schemas.errors import ContractError, InvalidRequest

SCHEMA_MAJOR = 1


class Message(BaseModel):
    """Base of all control messages.

    Within one major ``schema_version`` fields are only added and no default changes; readers ignore
    fields they do not know. Numbers are finite: JSON has no other.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    schema_version: int = SCHEMA_MAJOR

    @field_validator("schema_version")
    @classmethod
    def _known_major(cls, major: int) -> int:
        if major != SCHEMA_MAJOR:
            raise ValueError(
                f"schema version {major} is not supported, this side speaks {SCHEMA_MAJOR}; "
                "upgrade the older of the two processes"
            )
        return major

    def encode(self) -> bytes:
        """UTF-8 JSON; fields that hold their default are left out.

        Raises:
            InvalidRequest: a field of the user's own (e.g. ``raw_task``) cannot be JSON.
        """
        try:
            return orjson.dumps(self._wire_fields())
        except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"{type(self).__name__}: it cannot be JSON: {error}") from error

    def _wire_fields(self) -> dict[str, Any]:
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return {"schema_version": self.schema_version, **fields}

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview | str) -> Self:
        """The message that ``data`` holds.

        Raises:
            ContractError: not JSON, an unknown major version, or a field that is missing or wrong.
        """
        try:
            fields = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise ContractError(f"{cls.__name__}: not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise ContractError(f"{cls.__name__}: expected a JSON object")
        return cls.validate_fields(fields)

    @classmethod
    def validate_fields(cls, fields: object) -> Self:
        """As :meth:`decode`, for a JSON object that is parsed already."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ContractError(f"{cls.__name__}: {first_fault(error)}") from error


def first_fault(error: ValidationError) -> str:
    """``field: what is wrong`` of the first fault pydantic found."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "message"
    return f"{where}: {first['msg']}"


class ObjectRef(Message):
    """A payload stored as consecutive chunks ``<prefix>.0 .. <prefix>.<chunks - 1>`` of a stream."""

    prefix: str
    chunks: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: str
