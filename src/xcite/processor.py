"""This machine's processor: its name, and which instructions programs may use on it."""

import contextlib
import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# oneDNN's levels in their order; the names of AVX10 are others for the last ones.
LEVELS = (
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"),
    *("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX", "AVX512_CORE_AMX_FP16"),
)
SYNONYMS = {"AVX10_1_512_AMX": "AVX512_CORE_AMX", "AVX10_1_512": "AVX512_CORE_FP16"}
# Linux' name of the instructions: the level that oneDNN uses them from
NEEDS = {
    "avx2": "AVX2",
    "avx_vnni": "AVX2_VNNI",
    "avx_ne_convert": "AVX2_VNNI_2",
    "avx512bw": "AVX512_CORE",
    "avx512_vnni": "AVX512_CORE_VNNI",
    "avx512_bf16": "AVX512_CORE_BF16",
    "amx_bf16": "AVX512_CORE_AMX",
    "amx_int8": "AVX512_CORE_AMX",
}
CPUINFO = "/proc/cpuinfo"
NATIVE_BF16 = {"avx_ne_convert", "avx512_bf16", "amx_bf16"}


@dataclass(frozen=True)
class Processor:
    """What decides how fast which computation is.

    Attributes:
        name: as the system gives it, such as "AMD EPYC 9R14 96-Core Processor".
        vendor: "AuthenticAMD", "GenuineIntel" or whatever the system says; "" if it says nothing.
        model: numbers of family and model, which tell processors of one name apart.
        instructions: those keys of `NEEDS` that it has and that ONEDNN_MAX_CPU_ISA leaves to it.
        known: whether the system tells the instructions.
    """

    name: str
    vendor: str
    model: str
    instructions: frozenset[str]
    known: bool = True

    @property
    def instruction_set(self) -> str:
        """The widest, in a word: "AVX-512 and bf16", "AVX-512", "AVX2", or what the machine is."""
        if self.instructions & NATIVE_BF16 and "avx512bw" in self.instructions:
            return "AVX-512 and bf16"
        for flag, word in (("avx512bw", "AVX-512"), ("avx2", "AVX2")):
            if flag in self.instructions:
                return word
        return platform.machine() or "unknown"

    @property
    def native_bf16(self) -> bool:
        """Whether bfloat16 products are instructions of it, not imitated."""
        return bool(self.instructions & NATIVE_BF16)


@cache
def this_processor() -> Processor:
    """The processor that this process runs on; read once."""
    told = _told()
    numbers = [told[key] for key in ("cpu family", "model", "stepping") if key in told]
    return Processor(
        told.get("model name") or platform.processor() or platform.machine() or "unknown",
        told.get("vendor_id", ""),
        ".".join(numbers),
        allowed(told.get("flags", "").split()),
        "flags" in told,
    )


def _told() -> dict[str, str]:
    """What Linux tells of the first core, which stands for all."""
    told: dict[str, str] = {}
    with contextlib.suppress(OSError):
        text = Path(CPUINFO).read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if not line.strip():
                break
            told.setdefault(name.strip(), value.strip())
    return told


def allowed(flags: list[str]) -> frozenset[str]:
    """Those of Linux' flags that matter and that the environment leaves to oneDNN."""
    named = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""
    level = SYNONYMS.get(named.upper(), named.upper())
    most = LEVELS.index(level) if level in LEVELS else len(LEVELS)
    return frozenset(flag for flag in flags if flag in NEEDS and LEVELS.index(NEEDS[flag]) <= most)
