"""What every control message has in common: frozen, versioned, JSON, tolerant of new fields."""

from __future__ import annotations

from typing import Self

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from explorer_mq_schemas.errors import ContractError

SCHEMA_MAJOR = 1


class Message(BaseModel):
    """Base of all control messages.

    Within one major ``schema_version`` fields are only added; readers ignore those they do not know.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = SCHEMA_MAJOR

    def encode(self) -> bytes:
        """UTF-8 JSON; fields that hold their default are left out."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return orjson.dumps({"schema_version": self.schema_version, **fields})

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
        major = fields.get("schema_version", SCHEMA_MAJOR)
        if major != SCHEMA_MAJOR:
            raise ContractError(
                f"{cls.__name__}: schema version {major!r} is not supported, this side speaks "
                f"{SCHEMA_MAJOR}; upgrade the older of the two processes"
            )
        return cls.validate_fields(fields)

    @classmethod
    def validate_fields(cls, fields: object) -> Self:
        """As :meth:`decode`, for a JSON object that is parsed already."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "message"
            raise ContractError(f"{cls.__name__}: {where}: {first['msg']}") from error


class ObjectRef(Message):
    """A payload stored as consecutive chunks ``<prefix>.0 .. <prefix>.<chunks - 1>`` of a stream."""

    prefix: str
    chunks: int
    bytes: int
    sha256: str
