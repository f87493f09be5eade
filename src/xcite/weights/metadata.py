"""What travels with weights: variant, classes, preprocessing, provenance."""

import json
import re
from dataclasses import fields
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticSerializationError

from xcite.control_characters import writable_json
from xcite.errors import XciteError
from xcite.families import Architecture, family_of_fields
from xcite.preprocessing import Preprocessing

_NO_TEXT = re.compile(r"\\ud[89a-f]", re.IGNORECASE)  # which pydantic's own reader refuses


class Metadata(BaseModel):
    """Kept as JSON in the metadata of Xcite's safetensors files.

    Attributes:
        variant: the published name, such as "xcit_nano_12_p8" or "xcit_nano_12_p8_224_dist".
        architecture: every field of the architecture; an `Architecture` is accepted too.
        class_names: one name a class, in the order of the logits.
        preprocessing: how pictures become inputs in evaluation.
        provenance: where the numbers come from, in words: source, dialect, part, notes.
        recipe_hash: hash of the resolved recipe that trained them.
        metrics: measured figures, such as {"top1": 76.3}.
    """

    model_config = ConfigDict(extra="forbid")

    variant: str | None = None
    architecture: dict[str, Any] | None = None
    class_names: list[str] | None = None
    preprocessing: Preprocessing | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)
    recipe_hash: str | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)

    @field_validator("architecture", mode="before")
    @classmethod
    def _from_dataclass(cls, value: Any) -> Any:
        return value.fields() if isinstance(value, Architecture) else value

    def as_json(self) -> str:
        """What `metadata_from_json` reads."""
        try:
            return self.model_dump_json()
        except PydanticSerializationError:  # a class name that is no text, as folders may have
            values = self.model_dump(mode="json")
            return writable_json(json.dumps(values, ensure_ascii=False, separators=(",", ":")))

    def described_architecture(self) -> Architecture | None:
        """The architecture as a typed value, or None when the file does not say.

        Raises:
            XciteError: unknown or missing fields, or values of the wrong type.
        """
        if self.architecture is None:
            return None
        family = family_of_fields(self.architecture)
        known = {field.name: field.type for field in fields(family)}
        for name, value in self.architecture.items():
            if name not in known:
                raise XciteError(f"the metadata's architecture has an unknown field {name!r}")
            if not _fits(value, str(known[name])):
                raise XciteError(f"the metadata's architecture says {name} is {value!r}")
        try:
            return family(**self.architecture)
        except (TypeError, ZeroDivisionError) as error:
            raise XciteError(f"the metadata's architecture is incomplete: {error}") from error


def _fits(value: object, annotation: str) -> bool:
    """Whether a JSON value has the type of a dataclass field and a size a model can have."""
    if isinstance(value, list | tuple):
        return "tuple" in annotation and len(value) <= 8 and all(_fits(v, "int") for v in value)
    words = annotation.replace("<class '", "").replace("'>", "")
    if value is None or isinstance(value, bool):
        return "None" in words if value is None else "bool" in words
    if isinstance(value, int):
        return ("int" in words or "float" in words) and abs(value) <= 1_000_000
    return isinstance(value, float) and "float" in words and abs(value) <= 1e6


def metadata_from_json(text: str, origin: str) -> Metadata:
    """Parse the metadata of a file called ``origin``.

    Raises:
        XciteError: when it is not what this version writes.
    """
    try:
        if _NO_TEXT.search(text):
            return Metadata.model_validate(json.loads(text))
        return Metadata.model_validate_json(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise XciteError(f"{origin}: the Xcite metadata cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "metadata"
        raise XciteError(
            f"{origin}: the Xcite metadata cannot be read: {where}: {first['msg']}"
        ) from error
