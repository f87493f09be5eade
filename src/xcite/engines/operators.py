"""Which operators a model is built with.

Plain operators read like the paper. Fast ones have the same parameters and names and give the same
numbers but for rounding.
"""

from xcite.errors import XciteError

OPERATORS = ("fast", "plain")


def check_operators(operators: str, attention: str) -> None:
    """Refuse what cannot be built.

    Raises:
        XciteError: no such operators, or they do not have this form of attention.
    """
    if operators not in OPERATORS:
        raise XciteError(f"unknown operators {operators!r}; choose {' or '.join(OPERATORS)}")
    if operators == "plain" and attention == "covariance":
        raise XciteError(
            "plain operators have no covariance form of attention; "
            "set attention to usual or auto, or operators to fast"
        )
