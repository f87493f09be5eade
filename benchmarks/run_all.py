"""Run every benchmark and rewrite its table in docs/performance.md or results.md (`make bench`).
The one for a GPU runs only by its name.

    python benchmarks/run_all.py [NAME ... [-- OPTIONS of their scripts]]

The table is what lies between `<!-- begin NAME -->` and `<!-- end NAME -->`; people write the rest.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from xcite.machine import usable_cores
from xcite.processor import this_processor

HERE = Path(__file__).parent
PAGES = [HERE.parent / "docs" / name for name in ("performance.md", "results.md")]
# An older processor, imitated on a newer one by keeping the libraries from newer instructions.
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
AVX2_POINTS = [
    "torch:xcit_nano_12_p8:16:float32",
    "torch:xcit_nano_12_p16:16:float32",
    "torch:xcit_tiny_12_p8:4:float32",
    "torch:xcit_small_12_p16:4:float32",
]
COMPILED_OPERATORS = [
    "train_step.py",
    *("--engine", "paddle", "--reference", "uncompiled", "--processor-time", "--repeats", "3"),
]
SUITE = {
    "train_step_torch": ["train_step.py", "--engine", "torch"],
    "train_step_torch_own": [
        "train_step.py",
        *("--own-processes", "--models", "xcit_nano_12_p8", "--precision", "float32", "bf16"),
        *("--repeats", "9"),
    ],
    "train_step_paddle": ["train_step.py", "--engine", "paddle"],
    "compiled_operators": COMPILED_OPERATORS,
    "attention_forms": ["attention_forms.py"],
    "engines": ["engines.py"],
    "scaling": ["scaling.py", "--huge", "--picture", str(HERE.parent / "docs" / "scaling.png")],
    "data_pipeline": ["data_pipeline.py"],
    "data_workers": ["data_pipeline.py", "--workers", "1", "2", "4", "--rounds", "5"],
    "processes": ["processes.py"],
    "weights_loading": ["weights_loading.py"],
    "distilled_step": ["distilled_step.py"],
    "answer_cache": ["answer_cache.py"],
    "deployment": ["deployment.py"],
    "front": ["front.py", "--picture", str(HERE.parent / "docs" / "front.png")],
    "tuning": ["tuning.py"],
    "train_step_torch_avx2": [
        "train_step.py",
        *("--engine", "torch", "--precision", "float32"),
    ],
    "compiled_operators_avx2": COMPILED_OPERATORS,
    # oneDNN inside OpenVINO keeps the cap, OpenVINO's own kernels and ONNX Runtime do not
    "deployment_avx2": ["deployment.py"],
    "tuning_avx2": ["tuning.py", "--points", *AVX2_POINTS],
    "server_load": ["server_load.py"],
}
# Only by name, where there is a GPU.
ON_A_GPU = {"gpu": ["gpu.py"]}


def main(arguments: list[str]) -> None:
    """Run the named benchmarks, or all; what follows ``--`` is handed to each script."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    names, further = arguments[:end], arguments[end + 1 :]
    for name in names or SUITE:
        script, *options = [*(SUITE | ON_A_GPU)[name], *further]
        command = [sys.executable, str(HERE / script), *options]
        print(f"{name}: {' '.join(command[1:])}", flush=True)
        imitate = name.endswith("_avx2") and this_processor().instruction_set != "AVX2"
        caps = AVX2 if imitate else {}
        environment = {**os.environ, **caps}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
        variables = [f"{key}={value}" for key, value in caps.items()]
        typed = " ".join([*variables, f"python benchmarks/{script}", *options])
        shown = f"`{typed}` on {machine(caps)}".replace(str(HERE.parent) + "/", "")
        output = done.stdout.strip()
        if not output.startswith("|"):  # Markdown would fill it into one paragraph
            output = f"```\n{output}\n```"
        replace(name, f"{shown}\n\n{output}")
        print(done.stdout, flush=True)


def replace(name: str, text: str) -> None:
    """Put ``text`` between the markers of ``name``."""
    block = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        if block.search(page):
            page = block.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page)
            path.write_text(page, encoding="utf-8")
            return
    sys.exit(f"{' and '.join(path.name for path in PAGES)} have no place for {name}")


def machine(caps: dict[str, str]) -> str:
    """Cores, processor and the instructions that the libraries were left."""
    processor = this_processor()
    left = "AVX2 alone" if caps else processor.instruction_set
    model = f", model {processor.model}" if processor.model else ""
    return f"{usable_cores()} cores of {processor.name}{model}, {left}"


if __name__ == "__main__":
    main(sys.argv[1:])
