"""What a program really computes in: as far as this processor has the instructions.

OpenVINO overlooks ONEDNN_MAX_CPU_ISA and then fails, so it is asked for nothing that is not there.
"""

from xcite.processor import NATIVE_BF16, Processor

_NATIVE = {"bf16": NATIVE_BF16, "int8": {"avx_vnni", "avx512_vnni", "amx_int8"}}


def native(asked: str, processor: Processor) -> bool:
    """Whether a processor has instructions for a precision; an untold one is trusted.

    Args:
        asked: "f32", "f16", "bf16" or "int8".
    """
    wanted = _NATIVE.get(asked)
    return wanted is None or not processor.known or bool(processor.instructions & wanted)


def as_run(asked: str, processor: Processor) -> tuple[str, str, list[str]]:
    """How a program of a precision runs on a processor; an untold one is trusted.

    Args:
        asked: "f32", "f16", "bf16" or "int8".

    Returns:
        What floating-point numbers are computed in ("f32" or "bf16"), the precision of the whole,
        and notes for people where that is less than was asked for.
    """
    if asked == "f32":
        return "f32", "f32", []
    if asked == "f16":
        return "f32", "f32", ["its float16 numbers are computed in float32 on a CPU"]
    if not processor.known:
        return "bf16", asked, []
    able = processor.instructions
    notes = []
    floats = "bf16" if able & (NATIVE_BF16 | {"avx512bw"}) else "f32"
    if asked == "int8" and not native(asked, processor):
        notes.append("this processor has no instructions for int8 (VNNI): it may be no faster so")
    if floats == "f32":
        what = "what is not int8" if asked == "int8" else "the bundle"
        notes.append(f"this processor has no bfloat16 instructions: {what} runs in float32")
    elif not able & NATIVE_BF16:
        notes.append("this processor only imitates bfloat16: the bundle runs in it, but no faster")
    return floats, "int8" if asked == "int8" else floats, notes
