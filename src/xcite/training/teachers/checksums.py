"""The SHA-256 of a teacher cache's files, as `sha256sum -c` reads them.

They travel with the folder, so that who gets a copy can tell damage without the teacher.
"""

import re
from pathlib import Path

from xcite.errors import XciteError
from xcite.regular_files import read_regular
from xcite.training.teachers.cache_files import views_in
from xcite.weights.catalog import file_sha256
from xcite.whole_files import write_text

FILE = "checksums.sha256"
_ANEW = f"delete {FILE} and run `xcite teach`, which writes it anew"
_LIMIT = 16 * 2**20  # bytes; a line has about 90
# Names of a cache's own files alone: a stranger's list must not lead elsewhere.
_LINE = re.compile(r"([0-9a-f]{64}) [ *](manifest\.json|view-\d{5,9}\.safetensors)")


def read_checksums(folder: Path) -> dict[str, str]:
    """File name to SHA-256 in hexadecimal; empty for a cache that has no such file.

    Raises:
        XciteError: it cannot be read, or a line names anything but a file of the cache.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        text = read_regular(path, size=_LIMIT + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise XciteError(f"cannot read {path}: {error}; {_ANEW}") from error
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise XciteError(f"{path}: line {number} names no file of a teacher cache; {_ANEW}")
        found[match[2]] = match[1]
    return found


def update_checksums(folder: Path, changed: Path | None = None) -> dict[str, str]:
    """Write the list anew; returns it.

    Args:
        changed: a view that was just written. Other views are read only if the list lacks them: it
            shall tell damage, and hashing all views after each of them would take long.
    """
    known = read_checksums(folder)
    manifest = folder / "manifest.json"
    anew = (manifest, changed)
    sums = {
        path.name: (path not in anew and known.get(path.name)) or file_sha256(path)
        for path in (manifest, *views_in(folder).values())
    }
    write_text(folder / FILE, "".join(f"{sha256}  {name}\n" for name, sha256 in sums.items()))
    return sums


def check_files(folder: Path) -> int:
    """Compare the files of a cache with its list, byte by byte.

    Returns:
        How many were compared; 0 for a cache that was made without a list.

    Raises:
        XciteError: some are damaged, missing or not listed, by name.
    """
    sums = read_checksums(folder)
    if not sums:
        return 0
    present = {path.name for path in views_in(folder).values()}
    wrong = [f"{name} (not listed)" for name in sorted(present - set(sums))]
    for name, sha256 in sums.items():
        if not (folder / name).is_file():
            wrong.append(f"{name} (missing)")
        elif file_sha256(folder / name) != sha256:
            wrong.append(f"{name} (damaged)")
    if wrong:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise XciteError(
            f"the teacher cache {folder} is not what its {FILE} says: {shown}; delete those views "
            "and run `xcite teach`, or take another copy"
        )
    return len(sums)
