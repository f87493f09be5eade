"""The one exception users meet."""

from collections.abc import Iterator
from contextlib import contextmanager


class XciteError(Exception):
    """Something the user can mend.

    The message says in one line what is wrong, where, and what to do. The command line prints it
    and exits with code 2 (with a traceback under ``--debug``).

    Attributes:
        remedy: options with which `xcite train --resume` goes on in spite of it, such as
            "--set data.on_error=skip"; "" where it goes on as it is, or not at all.
    """

    def __init__(self, message: str = "", *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


@contextmanager
def naming(file: object, called: str) -> Iterator[None]:
    """Errors from inside begin with ``called``, unless they name ``file`` already."""
    try:
        yield
    except XciteError as error:
        if str(file) in str(error):
            raise
        raise XciteError(f"{called}: {error}", remedy=error.remedy) from error
