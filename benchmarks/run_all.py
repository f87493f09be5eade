"""Run every benchmark and rewrite its table in docs/performance.md (`make bench`).

    python benchmarks/run_all.py [NAME ... [-- OPTIONS of their scripts]]

The table is what lies between `<!-- begin NAME -->` and `<!-- end NAME -->`; people write the rest.
"""

import platform
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
SUITE = {
    "train_step_torch": ["train_step.py", "--engine", "torch"],
    "train_step_torch_own": [
        "train_step.py",
        *("--own-processes", "--models", "xcit_nano_12_p8", "--precision", "float32", "bf16"),
        *("--repeats", "9"),
    ],
    "train_step_paddle": ["train_step.py", "--engine", "paddle"],
    "attention_forms": ["attention_forms.py"],
    "engines": ["engines.py"],
    "scaling": ["scaling.py", "--huge", "--picture", str(HERE.parent / "docs" / "scaling.png")],
    "data_pipeline": ["data_pipeline.py"],
    "weights_loading": ["weights_loading.py"],
    "distilled_step": ["distilled_step.py"],
    "deployment": ["deployment.py"],
    "server_load": ["server_load.py"],
}


def main(arguments: list[str]) -> None:
    """Run the named benchmarks, or all; what follows ``--`` is handed to each script."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    names, further = arguments[:end], arguments[end + 1 :]
    for name in names or SUITE:
        script, *options = [*SUITE[name], *further]
        command = [sys.executable, str(HERE / script), *options]
        print(f"{name}: {' '.join(command[1:])}", flush=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
        shown = f"`python benchmarks/{' '.join([script, *options])}` on {machine()}".replace(
            str(HERE.parent) + "/", ""
        )
        output = done.stdout.strip()
        if not output.startswith("|"):  # Markdown would fill it into one paragraph
            output = f"```\n{output}\n```"
        replace(name, f"{shown}\n\n{output}")
        print(done.stdout, flush=True)


def replace(name: str, text: str) -> None:
    """Put ``text`` between the markers of ``name``."""
    page = PAGE.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not block.search(page):
        sys.exit(f"{PAGE} has no place for {name}")
    page = block.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page)
    PAGE.write_text(page, encoding="utf-8")


def machine() -> str:
    """Processor and core count, as the system tells."""
    import os

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores of {model}"


if __name__ == "__main__":
    main(sys.argv[1:])
