"""Which form of cross-covariance attention to compute.

Both forms give the same numbers. The usual form needs 4 N d^2 + 2 N d c multiply-adds for N tokens
of width d and heads of width c, the covariance form 2 N d^2 + 3 d^3 + 2 d^2 c. PyTorch spends
3 d^2 c more, to have the squares of q and k from the same product as q k^T.
"""

from xcite.errors import XciteError

FORMS = ("auto", "usual", "covariance")

# Above this many tokens per channel the covariance form is taken. Measured with
# benchmarks/attention_forms.py on a CPU: on PyTorch it is the faster one from about 1.75 in float32
# and 1.4 in bfloat16 (no published model at 224 or 384 pixels lies between 1.6 and 2), on Paddle,
# which is slow at turning q, k and v round, from 0.5 or so, where it takes more memory though.
TOKENS_PER_CHANNEL = {"torch": 1.75, "paddle": 0.75}


def check_form(attention: str) -> str:
    """The name itself.

    Raises:
        XciteError: if it is not one of `FORMS`.
    """
    if attention not in FORMS:
        raise XciteError(f"unknown attention form {attention!r}; choose {', '.join(FORMS)}")
    return attention


def uses_covariance(attention: str, tokens: object, width: int, engine: str) -> bool:
    """Whether to compute the covariance form.

    Args:
        attention: one of `FORMS`.
        tokens: N; anything but a positive int (a symbol, -1) says that the graph is being traced
            for any size: then the form whose cost grows slower with N is taken.
        width: d.
        engine: "paddle" or "torch".
    """
    if attention != "auto":
        return attention == "covariance"
    if type(tokens) is not int or tokens < 1:
        return True
    return tokens > TOKENS_PER_CHANNEL[engine] * width
