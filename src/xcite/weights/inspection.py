"""Say what a weights file holds without reading its numbers."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from xcite import canonical
from xcite.errors import XciteError
from xcite.preprocessing import Preprocessing
from xcite.weights.catalog import file_sha256
from xcite.weights.containers import Contents, read_contents
from xcite.weights.identification import identify
from xcite.weights.metadata import Metadata


class PartReport(BaseModel):
    """One model of a file.

    Attributes:
        assumed: fields of the architecture that no tensor shows and no metadata names.
        aside: names of tensors that belong to no model.
        problem: what keeps it from loading, or None.
    """

    part: str
    dialect: str | None = None
    family: str | None = None
    variant: str | None = None
    architecture: dict[str, Any] | None = None
    assumed: list[str] = []
    classes: int | None = None
    parameters: int | None = None
    tensors: int
    dtypes: list[str]
    metadata: Metadata | None = None
    preprocessing: Preprocessing | None = None
    notes: list[str] = []
    aside: list[str] = []
    problem: str | None = None


class Report(BaseModel):
    """What `xcite inspect` prints."""

    file: str
    bytes: int
    sha256: str
    container: str
    notes: list[str]
    parts: list[PartReport]


def inspect(path: Path, *, dialect: str | None = None) -> Report:
    """Describe a weights file and each model in it.

    Raises:
        XciteError: the file cannot be read or is refused.
    """
    contents = read_contents(path)
    return Report(
        file=path.name,
        bytes=sum(file.stat().st_size for file in contents.files),
        sha256=file_sha256(*contents.files),
        container=contents.container,
        notes=contents.notes,
        parts=[_part(path, contents, part, dialect) for part in contents.parts],
    )


def _part(path: Path, contents: Contents, part: str, dialect: str | None) -> PartReport:
    state = contents.parts[part]
    dtypes = sorted({tensor.dtype for tensor in state.values() if tensor.shape})
    report = PartReport(part=part, tensors=len(state), dtypes=dtypes)
    try:
        model = identify(path, contents, part, dialect)
        architecture = model.architecture
        report.dialect = model.dialect
        report.family = architecture.title
        report.variant = model.metadata.variant
        report.architecture = Metadata(architecture=architecture).architecture
        report.assumed = list(model.assumed)
        report.classes = architecture.num_classes
        report.parameters = canonical.parameter_count(architecture)
        report.metadata = model.metadata
        report.preprocessing = model.metadata.preprocessing
        report.notes, report.aside = model.notes, model.aside
        canonical.check(dict(model.stored), architecture)  # type: ignore[arg-type]
    except XciteError as error:
        report.problem = str(error)
    return report
