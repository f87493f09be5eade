"""Which form of cross-covariance attention to compute: one rule for both engines.

Both forms give the same numbers. The usual form needs 4 N d^2 + 2 N d c multiply-adds for N tokens
of width d and heads of width c, the covariance form 2 N d^2 + 3 d^3 + 2 d^2 c.
"""

from xcite.errors import XciteError

FORMS = ("auto", "usual", "covariance")

# Above this many tokens per channel the covariance form is taken. Measured on PyTorch (AMD EPYC,
# Zen 4), forward and backward of one layer with d of 128, 192 and 384: it is the faster one from
# about 1.3 tokens per channel in float32 and from about 2.1 in bfloat16; no published model at 224
# or 384 pixels lies between 1.6 and 2.
TOKENS_PER_CHANNEL = 1.75


def check_form(attention: str) -> str:
    """The name itself.

    Raises:
        XciteError: if it is not one of `FORMS`.
    """
    if attention not in FORMS:
        raise XciteError(f"unknown attention form {attention!r}; choose {', '.join(FORMS)}")
    return attention


def uses_covariance(attention: str, tokens: object, width: int) -> bool:
    """Whether to compute the covariance form.

    Args:
        attention: one of `FORMS`.
        tokens: N; anything but a positive int (a symbol, -1) says that the graph is being traced
            for any size: then the form whose cost grows slower with N is taken.
        width: d.
    """
    if attention != "auto":
        return attention == "covariance"
    if type(tokens) is not int or tokens < 1:
        return True
    return tokens > TOKENS_PER_CHANNEL * width
