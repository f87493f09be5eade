"""Training steps of both engines side by side: pictures per second and peak memory.

    python benchmarks/engines.py [--repeats 5]

Every line runs in a process of its own through `xcite.evaluation.throughput.measure`, the code of
`xcite benchmark`: whole steps of the product's engine, from uint8 pictures to updated weights.
Prints a Markdown table.
"""

import argparse
import json
import subprocess
import sys

CASES = (("xcit_nano_12_p8", 16), ("xcit_small_12_p16", 8))
POINT = """
import json, sys
from xcite.evaluation.throughput import measure
from xcite.variants import find
name, batch, engine, precision, repeats = json.loads(sys.argv[1])
print(json.dumps(measure(find(name), engine=engine, batch=batch, height=224, width=224, train=True,
                         repeats=repeats, warmup=1, precision=precision).to_json()))
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print("| model | batch | engine | precision | pictures/s (quartiles) | peak memory, MiB |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for name, batch in CASES:
        for engine, precision in (("torch", "float32"), ("torch", "bf16"), ("paddle", "float32")):
            call = json.dumps([name, batch, engine, precision, options.repeats])
            done = subprocess.run(
                [sys.executable, "-c", POINT, call],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            result = json.loads(done.stdout.splitlines()[-1])
            low, median, high = result["images_per_second"]
            print(
                f"| {name} | {batch} | {engine} | {precision} "
                f"| {median:.2f} ({low:.2f} to {high:.2f}) | {result['peak_memory']:.0f} |",
                flush=True,
            )
    print("\nPaddle has no bfloat16 matrix product on a CPU, so that line is missing.")


if __name__ == "__main__":
    main()
