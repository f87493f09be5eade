"""Pictures that cannot be decoded: stop at the first, or leave a few out and say which."""

from collections.abc import Mapping
from dataclasses import dataclass

from xcite.errors import XciteError

_SHARE = 100  # one in so many may be left out
_FEWEST, _MOST = 10, 100
_EXAMPLES = 3


@dataclass(frozen=True)
class Skipping:
    """What is done about a picture that cannot be decoded.

    Attributes:
        on_error: "stop" or "skip".
        limit: pictures that may be skipped; None for 1 % of the source, at least 10 (few, but
            small sources need them) and at most 100 (more is no loss but missing data).
        pictures: of the source.
    """

    on_error: str
    limit: int | None
    pictures: int

    @property
    def most(self) -> int:
        """How many pictures may be skipped."""
        if self.limit is not None:
            return self.limit
        return min(_MOST, max(_FEWEST, self.pictures // _SHARE))

    def leave_out(self, error: Exception, name: str, skipped: dict[str, str]) -> None:
        """Note a picture with its reason, or stop because of it.

        Raises:
            XciteError: with ``on_error`` "stop", or if ``skipped`` are too many by now.
        """
        told = str(error) if isinstance(error, XciteError) else f"{name}: memory ran out"
        if self.on_error == "stop":
            raise XciteError(
                f"{told} (data.on_error: skip, or evaluate --skip, would leave it out)",
                remedy="--set data.on_error=skip",
            ) from error
        skipped[name] = told.removeprefix(f"{name}: ")
        self.check(skipped)

    def check(self, skipped: Mapping[str, str]) -> None:
        """Raise XciteError if more pictures were skipped than may be."""
        if len(skipped) <= self.most:
            return
        examples = [f"{name}: {reason}" for name, reason in list(skipped.items())[:_EXAMPLES]]
        raise XciteError(
            f"{len(skipped)} of {self.pictures} pictures cannot be read, more than the "
            f"{self.most} that may be skipped ({'; '.join(examples)}); have data been moved or "
            "damaged? Mend or remove them, or raise data.skip_limit",
            remedy=f"--set data.skip_limit={2 * len(skipped)}",
        )
