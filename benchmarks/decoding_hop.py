"""What decoding in a process of its own costs, beside decoding in the server's own process.

    python benchmarks/decoding_hop.py [--rounds 5] [--pictures 300]

Both decode, resize and crop the same JPEGs to 224 x 224, one after the other; the rounds alternate.
Printed are the best round's milliseconds on the clock, and of processor time in all processes,
which hardly changes when other work shares the machine.
"""

import argparse
import asyncio
import io
import time
from pathlib import Path

import numpy as np
from PIL import Image

from xcite.data.decoding import decode
from xcite.preprocessing import Preprocessing
from xcite.runtime.predictor import input_pixels
from xcite.server.decoders import Decoders
from xcite.server.limits import Limits

SIDES = ((298, 224), (640, 480), (1600, 1200), (4000, 3000))


def photograph(width: int, height: int) -> bytes:
    """A JPEG with detail at every scale."""
    draw, total = np.random.default_rng(0), np.zeros((height, width, 3), np.float32)
    for cells in (6, 60, 600):
        noise = draw.integers(0, 256, (cells, cells, 3), np.uint8)
        total += np.asarray(Image.fromarray(noise).resize((width, height))) / np.sqrt(cells)
    buffer = io.BytesIO()
    Image.fromarray((total / total.max() * 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def processor_seconds() -> float:
    """Of this process and of its children that live."""
    nanoseconds = 0
    for path in Path("/proc/self/task").glob("*/children"):
        for child in path.read_text("ascii").split():
            for thread in Path(f"/proc/{child}/task").glob("*/schedstat"):
                nanoseconds += int(thread.read_text("ascii").split()[0])
    return time.process_time() + nanoseconds / 1e9


async def measure(rounds: int, pictures: int) -> None:
    preprocessing = Preprocessing(size=224)
    decoders = Decoders(preprocessing, None, Limits())
    decoders.start()
    for width, height in SIDES:
        data = photograph(width, height)
        count = max(5, pictures * 298 * 224 // (width * height))
        here: list[tuple[float, float]] = []
        there: list[tuple[float, float]] = []
        for _ in range(rounds):
            began = time.perf_counter(), processor_seconds()
            for _ in range(count):
                own = input_pixels(decode(data), preprocessing, None)
            between = time.perf_counter(), processor_seconds()
            for _ in range(count):
                other = await decoders.decode(data, lambda pixels: None)
            ended = time.perf_counter(), processor_seconds()
            here.append((between[0] - began[0], between[1] - began[1]))
            there.append((ended[0] - between[0], ended[1] - between[1]))
        assert np.array_equal(own, other.pixels)
        said = [
            f"{name} {1000 * min(a[k] for a in here) / count:.2f} -> "
            f"{1000 * min(b[k] for b in there) / count:.2f} ms"
            for k, name in enumerate(("clock", "processor"))
        ]
        print(f"{width} x {height} ({len(data) // 1024} KiB): {', '.join(said)}")
    decoders.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=300, help="of the smallest size, a round")
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.rounds, arguments.pictures))


if __name__ == "__main__":
    main()
