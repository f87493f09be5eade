"""Which form of cross-covariance attention to compute.

Both forms give the same numbers. The usual form needs 4 N d^2 + 2 N d c multiply-adds for N tokens
of width d and heads of width c, the covariance form 2 N d^2 + 3 d^3 + 2 d^2 c. PyTorch spends
3 d^2 c more, to have the squares of q and k from the same product as q k^T.
"""

from xcite.errors import XciteError

FORMS = ("auto", "usual", "covariance")


def check_form(attention: str) -> str:
    """The name itself.

    Raises:
        XciteError: if it is not one of `FORMS`.
    """
    if attention not in FORMS:
        raise XciteError(f"unknown attention form {attention!r}; choose {', '.join(FORMS)}")
    return attention


def uses_covariance(attention: str, tokens: object, width: int, above: float) -> bool:
    """Whether to compute the covariance form.

    Args:
        attention: one of `FORMS`.
        tokens: N; anything but a positive int (a symbol, -1) says that the graph is being traced
            for any size: then the form whose cost grows slower with N is taken.
        width: d.
        above: tokens per channel above which "auto" takes it, `Choices.covariance_above`.
    """
    if attention != "auto":
        return attention == "covariance"
    if type(tokens) is not int or tokens < 1:
        return True
    return tokens > above * width
