"""Extra peak memory and time of opening a large weights file, beside the frameworks' own loaders.

    python benchmarks/weights_loading.py [--model xcit_large_24_p8] [--rounds 3] [--folder FOLDER]
    python benchmarks/weights_loading.py --checksums torch [--model ...]   # what verifying costs

Writes generated weights once per container, then loads each file in fresh child processes, ours and
the framework's in turn, the file in the page cache. A child reports the growth of its peak resident
memory from after its imports, and seconds. What "extra" counts: everything the loading process
needed on top of what it had, the loaded arrays included.
"""

import argparse
import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

# container: dialect, framework to compare with
CONTAINERS = {
    ".pth": ("official", "torch"),
    ".pdparams": ("passl", "paddle"),
    ".safetensors": ("xcite", None),
}


def write_files(model: str, folder: Path) -> dict[str, Path]:
    """Generated weights in every container."""
    from xcite.canonical import shapes
    from xcite.variants import find
    from xcite.weights import Metadata, save_weights
    from xcite.weights.dialects import express
    from xcite.weights.paddle_files import write_paddle
    from xcite.weights.torch_writer import write_torch

    architecture = find(model)
    random = np.random.default_rng(0)
    weights = {
        name: np.zeros(shape, np.int64)
        if name.endswith("num_batches_tracked")
        else random.standard_normal(shape, dtype=np.float32)
        for name, shape in shapes(architecture).items()
    }
    paths = {suffix: folder / f"{model}{suffix}" for suffix in CONTAINERS}
    save_weights(paths[".safetensors"], weights, Metadata(architecture=architecture))
    write_torch(paths[".pth"], express(weights, "official", architecture), wrap="model")
    write_paddle(paths[".pdparams"], express(weights, "passl", architecture))
    return paths


def peak_memory() -> int:
    """Peak resident bytes of this process since its start (a child's rusage holds its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def load(loader: str, path: str) -> None:
    """In a child: load once, print growth of peak memory in bytes and seconds."""
    if loader == "xcite":
        from xcite.weights import open_weights

        # Everything the reader imports on its way is no cost of the file.
        from xcite.weights.imagenet import imagenet_classes

        imagenet_classes()
        importlib.import_module("safetensors.numpy")
        run = lambda: open_weights(path)  # noqa: E731
    elif loader == "torch":
        import torch

        run = lambda: torch.load(path, weights_only=True)  # noqa: E731
    else:
        import paddle

        paddle.set_device("cpu")
        run = lambda: paddle.load(path)  # noqa: E731
    before = peak_memory()
    start, busy = time.perf_counter(), time.process_time()
    result = run()
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    extra = peak_memory() - before
    assert result
    print(json.dumps({"extra": extra, "seconds": seconds, "busy": busy}))


def measured(loader: str, path: Path) -> dict[str, float]:
    """One child process."""
    answer = subprocess.run(
        [sys.executable, __file__, "--child", loader, str(path)],
        check=True,
        capture_output=True,
        text=True,
    )
    result: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return result


def checksum_cost(engine: str, model: str, folder: Path, rounds: int) -> None:
    """Print how much of building a model from a file goes into verifying checksums."""
    import xcite
    from xcite.canonical import initial_weights
    from xcite.variants import find
    from xcite.weights import Metadata, safetensors_files, save_weights

    architecture, path = find(model), folder / "weights.safetensors"
    save_weights(path, initial_weights(architecture), Metadata(architecture=architecture))
    verify, spent, pairs = safetensors_files.verify, [0.0], []

    def timed(*arguments: Any) -> None:
        start = time.perf_counter()
        verify(*arguments)
        spent[0] += time.perf_counter() - start

    safetensors_files.verify = timed
    for _ in range(rounds):
        spent[0], start = 0.0, time.perf_counter()
        xcite.create_model(model, engine=engine, weights=path)
        pairs.append((time.perf_counter() - start, spent[0]))
    whole, verifying = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{engine}, {model}: {1000 * whole:.1f} ms, of which verifying {1000 * verifying:.2f} ms, "
        f"{verifying / whole:.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="xcit_large_24_p8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write the files; a temporary one")
    parser.add_argument("--checksums", metavar="ENGINE", help="measure only what verifying costs")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        load(*options.child)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        if options.checksums:
            checksum_cost(options.checksums, options.model, Path(folder), options.rounds)
            return
        paths = write_files(options.model, Path(folder))
        print(f"{options.model}, {options.rounds} rounds, medians")
        for suffix, (_, framework) in CONTAINERS.items():
            path = paths[suffix]
            size = path.stat().st_size
            path.read_bytes()  # into the page cache
            loaders = ["xcite"]
            if framework is not None and importlib.util.find_spec(framework):
                loaders.append(framework)
            rounds: dict[str, list[dict[str, float]]] = {name: [] for name in loaders}
            for _ in range(options.rounds):
                for name in loaders:
                    rounds[name].append(measured(name, path))
            seconds = {n: statistics.median(r["seconds"] for r in rounds[n]) for n in loaders}
            for name in loaders:
                extra = statistics.median(r["extra"] for r in rounds[name]) / size
                busy = {n: statistics.median(r["busy"] for r in rounds[n]) for n in loaders}
                ratio = seconds["xcite"] / seconds[name]
                effort = busy["xcite"] / busy[name]
                print(
                    f"{suffix:<13} {size / 1e6:6.0f} MB  {name:<7} extra memory "
                    f"{extra:.2f} x file, {seconds[name]:.2f} s ({busy[name]:.2f} s of CPU), "
                    f"xcite / {name} {ratio:.2f} ({effort:.2f} of CPU)"
                )


if __name__ == "__main__":
    main()
