"""Which device a recipe's ``run.device`` means: what both engines check and say alike."""

from xcite.errors import XciteError


def numbered(framework: str, asked: str, kind: str, count: int) -> str:
    """The device that was asked for by the framework's own name, such as "cuda" or "cuda:1".

    Args:
        kind: the framework's name of such devices.
        count: how many of them it finds.

    Raises:
        XciteError: this machine has no such device.
    """
    if not count:
        told = "GPU" if kind in ("cuda", "gpu") else f"device {kind}"
        raise XciteError(
            f"{framework} finds no {told} on this machine; set run.device to cpu (--device cpu)"
        )
    number = asked.partition(":")[2]
    if number and int(number) >= count:
        raise XciteError(
            f"run.device is {asked}, but {framework} finds {count} such devices here, counted "
            "from 0"
        )
    return f"{kind}:{number}" if number else kind


def no_tf32() -> XciteError:
    """The error of a run in TF32 on a device that has no such thing."""
    return XciteError(
        "tf32 is a precision of NVIDIA's GPUs, and this run is to use none; set run.precision to "
        "float32"
    )
