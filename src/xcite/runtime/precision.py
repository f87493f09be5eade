"""What a program really computes in: as far as this processor has the instructions.

oneDNN, which OpenVINO computes with, can be kept from some of them by ONEDNN_MAX_CPU_ISA. OpenVINO
itself overlooks that and then fails, so it is asked for nothing that is not there.
"""

import os
from collections.abc import Collection

# oneDNN's levels in their order; the names of AVX10 are others for the last ones.
_LEVELS = (
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"),
    *("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX512_CORE_AMX_FP16"),
)
_SYNONYMS = {"AVX10_1_512_AMX": "AVX512_CORE_AMX", "AVX10_1_512": "AVX512_CORE_FP16"}
# Linux' flag: the level that it needs
_NEEDS = {
    "avx_vnni": "AVX2_VNNI",
    "avx_ne_convert": "AVX2_VNNI_2",
    "avx512bw": "AVX512_CORE",
    "avx512_vnni": "AVX512_CORE_VNNI",
    "avx512_bf16": "AVX512_CORE_BF16",
    "amx_bf16": "AVX512_CORE_AMX",
    "amx_int8": "AVX512_CORE_AMX",
}
_BF16 = {"avx_ne_convert", "avx512_bf16", "amx_bf16"}
_INT8 = {"avx_vnni", "avx512_vnni", "amx_int8"}


def as_run(asked: str, flags: Collection[str] | None) -> tuple[str, str, list[str]]:
    """How a program of a precision runs on a processor.

    Args:
        asked: "f32", "f16", "bf16" or "int8".
        flags: of `xcite.machine.processor_flags`; None promises what is asked for.

    Returns:
        What floating-point numbers are computed in ("f32" or "bf16"), the precision of the whole,
        and notes for people where that is less than was asked for.
    """
    if asked == "f32":
        return "f32", "f32", []
    if asked == "f16":
        return "f32", "f32", ["its float16 numbers are computed in float32 on a CPU"]
    if flags is None:
        return "bf16", asked, []
    able = _allowed(flags)
    notes = []
    floats = "bf16" if able & (_BF16 | {"avx512bw"}) else "f32"
    if asked == "int8" and not able & _INT8:
        notes.append("this processor has no instructions for int8 (VNNI): it may be no faster so")
    if floats == "f32":
        what = "what is not int8" if asked == "int8" else "the bundle"
        notes.append(f"this processor has no bfloat16 instructions: {what} runs in float32")
    elif not able & _BF16:
        notes.append("this processor only imitates bfloat16: the bundle runs in it, but no faster")
    return floats, "int8" if asked == "int8" else floats, notes


def _allowed(flags: Collection[str]) -> set[str]:
    """Those of the flags in `_NEEDS` that oneDNN may use."""
    named = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    level = _SYNONYMS.get(named.upper(), named.upper())
    most = _LEVELS.index(level) if level in _LEVELS else len(_LEVELS)
    return {flag for flag in flags if flag in _NEEDS and _LEVELS.index(_NEEDS[flag]) <= most}
