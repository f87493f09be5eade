"""The server under load: throughput against the Predictor's own, latency, and hostile requests.

    python benchmarks/server_load.py                       # both parts with drawn weights
    python benchmarks/server_load.py --bundle my-bundle    # with a bundle of your own

The server runs as a process of its own, `xcite serve` on loopback; this process is the client.

1. Throughput. Rounds alternate between `Predictor.predict` on encoded pictures in this process and
   one-picture requests from many connections, so that both see the same machine.
2. Endurance. Requests of which 5 % are hostile. Every good one must get its own picture's answer,
   every hostile one a 4xx or a closed door, and the server's memory must not grow by 5 %.
"""

import argparse
import asyncio
import contextlib
import gzip
import io
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from xcite.runtime.predictor import Predictor

PICTURES = 64


def drawn_bundle(folder: Path, model: str, size: int) -> Path:
    """A bundle with drawn weights: they cost what trained ones cost."""
    import onnx

    from xcite.canonical import initial_weights
    from xcite.export.graph import build
    from xcite.preprocessing import Preprocessing
    from xcite.runtime.bundle import BundleInfo, describe, seal_folder
    from xcite.variants import find

    architecture = find(model)
    folder.mkdir(parents=True)
    graph = build(initial_weights(architecture), architecture, size=(size, size))
    onnx.save(graph, folder / "model.onnx")
    info = BundleInfo(
        format="onnx",
        precision="f32",
        model=model,
        architecture=describe(architecture),
        size=(size, size),
        preprocessing=Preprocessing(size=size),
        class_names=[f"class {k}" for k in range(architecture.num_classes)],
        outputs=["logits", "class_attention"],
        agreement={},
    )
    seal_folder(folder, info)
    return folder


def encoded_pictures(side: int) -> list[bytes]:
    """JPEGs of smooth coloured blobs, a little larger than the input."""
    result = []
    for seed in range(PICTURES):
        noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
        buffer = io.BytesIO()
        picture = Image.fromarray(noise).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
        picture.save(buffer, "JPEG", quality=90)
        result.append(buffer.getvalue())
    return result


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in path.read_text("ascii").split():
                found += family(int(child))
    return found


class Server:
    """`xcite serve` as a process."""

    def __init__(self, bundle: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "xcite.cli", "serve", str(bundle), "--port", "0", *options],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if not found:
            raise SystemExit(f"the server did not start: {line}")
        self.port = int(found[1])

    def memory(self) -> float:
        """Resident MiB of the process that was started, without its decoders and workers."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"VmRSS:\s+(\d+)", text)
        assert found is not None
        return int(found[1]) / 1024

    def processor_seconds(self) -> float:
        """User and system time so far, of all its processes."""
        ticks = 0
        for pid in family(self.process.pid):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
                ticks += sum(map(int, text.rpartition(")")[2].split()[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Connection:
    """A keep-alive connection that speaks just enough HTTP."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes, *, answer: bool = True) -> tuple[int, bytes]:
        """Status and body; status 0 when the server closed the door."""
        try:
            if self._writer is None:
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self.port)
            assert self._reader is not None
            self._writer.write(request)
            await self._writer.drain()
            if not answer:
                self.close()
                return 0, b""
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            body = await self._reader.readexactly(int(length[1])) if length else b""
            if b"connection: close" in head.lower():
                self.close()
            return int(head.split(b" ", 2)[1]), body
        except (ConnectionError, asyncio.IncompleteReadError):
            self.close()
            return 0, b""

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def post(data: bytes, kind: str = "image/jpeg") -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def hostile_requests(good: bytes) -> dict[str, tuple[bytes, bool]]:
    """Name to request and whether an answer is waited for."""
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")  # 400 million pixels in 50 kB
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    form = b"--b\r\nContent-Disposition: form-data; name=f; filename=f\r\n\r\n" + good[:99]
    return {
        "text": (post(b"this is not a picture" * 50), True),
        "truncated": (post(good[: len(good) // 2]), True),
        "bomb": (post(bomb.getvalue(), "image/png"), True),
        "giant header": (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", True),
        "wrong method": (b"DELETE /predict HTTP/1.1\r\nHost: x\r\n\r\n", True),
        "invented method": (b"BREW /predict HTTP/1.1\r\nHost: x\r\n\r\n", True),
        "wrong type": (post(b'{"a": 1}', "application/json"), True),
        "deep JSON": (post(b"[" * 2**20, "application/json"), True),
        "wrong base64": (post(b'{"image": "' + b"?" * 2**20 + b'"}', "application/json"), True),
        "gzip bomb": (
            post(gzip.compress(bytes(2**26)), "image/png\r\nContent-Encoding: gzip"),
            True,
        ),
        "10,000 parts": (post(10_000 * form[:-99], "multipart/form-data; boundary=b"), True),
        "unfinished form": (post(form, "multipart/form-data; boundary=b"), True),
        "too much announced": (head + b"Content-Length: 99999999999\r\n\r\n", True),
        "nonsense": (b"\x16\x03\x01\x02\x00nonsense\r\n\r\n", True),
        "hangs up": (head + b"Content-Length: 5000\r\n\r\n" + good[:200], False),
    }


@dataclass
class Tally:
    """What came back."""

    seconds: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    good: int = 0
    wrong: list[str] = field(default_factory=list)
    hostile: dict[str, set[int]] = field(default_factory=dict)


def best_class(body: bytes) -> str:
    name: str = json.loads(body)["pictures"][0]["predictions"][0]["name"]
    return name


async def until(port: int, requests: list[bytes], clients: int, seconds: float) -> Tally:
    """Good requests from ``clients`` connections for some seconds."""
    tally = Tally()
    begun = time.perf_counter()
    end = begun + seconds
    order = itertools.count()

    async def client() -> None:
        connection = Connection(port)
        while (started := time.perf_counter()) < end:
            status, body = await connection.ask(requests[next(order) % len(requests)])
            if status == 200:
                tally.seconds.append(time.perf_counter() - started)
            else:
                tally.wrong.append(f"{status} {body[:80]!r}")
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    tally.elapsed = time.perf_counter() - begun  # the last answers come after the end
    return tally


async def endure(
    port: int, pictures: list[bytes], expected: list[str], count: int, clients: int, seed: int
) -> Tally:
    """``count`` requests, every twentieth hostile."""
    tally = Tally()
    hostile = hostile_requests(pictures[0])
    requests = [post(picture) for picture in pictures]
    plan: list[int | str] = [
        random.Random(f"{seed} {i}").choice(sorted(hostile)) if i % 20 == 7 else i % len(requests)
        for i in range(count)
    ]
    work = iter(plan)

    async def client() -> None:
        connection = Connection(port)
        for task in work:
            if isinstance(task, str):
                request, answer = hostile[task]
                status, _ = await Connection(port).ask(request, answer=answer)
                tally.hostile.setdefault(task, set()).add(status)
                continue
            started = time.perf_counter()
            status, body = await connection.ask(requests[task])
            tally.seconds.append(time.perf_counter() - started)
            if status == 200 and best_class(body) == expected[task]:
                tally.good += 1
            else:
                tally.wrong.append(f"picture {task}: {status} {body[:80]!r}")
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return tally


def percentile(seconds: list[float], share: float) -> float:
    """In milliseconds."""
    return 1000 * float(np.percentile(seconds, share))


def tell_hostile(tally: Tally) -> None:
    """Print what went wrong with good requests, and what became of hostile ones."""
    for wrong in tally.wrong[:5]:
        print(f"    {wrong}")
    print("  hostile ones, statuses (0: door closed):")
    for name, statuses in sorted(tally.hostile.items()):
        print(f"    {name}: {sorted(statuses)}")


def own_throughput(
    predictor: Predictor, pictures: list[bytes], batch: int, seconds: float
) -> tuple[int, float]:
    """Pictures done by `Predictor.predict`, ``batch`` at a time, and the seconds it took."""
    done, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        first = done % len(pictures)
        predictor.predict((pictures + pictures)[first : first + batch])
        done += batch
    return done, passed


def throughput(bundle: Path, arguments: argparse.Namespace) -> bool:
    predictor = Predictor(bundle)
    pictures = encoded_pictures(predictor.preprocessing.size)
    requests = [post(picture) for picture in pictures]
    several = ["--workers", str(arguments.workers)] if arguments.workers > 1 else []
    server = Server(bundle, "--batch", str(arguments.batch), *several)
    try:
        own_throughput(predictor, pictures, arguments.batch, 1)
        asyncio.run(until(server.port, requests, arguments.clients, 2))
        rounds, tally = [], Tally()
        # Processor seconds per picture hardly change when other work shares the machine.
        spent = {"predictor": 0.0, "client": 0.0, "server": 0.0}
        own_pictures = 0
        for _ in range(arguments.rounds):
            started, served_before = time.process_time(), server.processor_seconds()
            done, passed = own_throughput(predictor, pictures, arguments.batch, arguments.seconds)
            between = time.process_time()
            spent["predictor"] += between - started
            own_pictures += done
            one = asyncio.run(until(server.port, requests, arguments.clients, arguments.seconds))
            spent["client"] += time.process_time() - between
            spent["server"] += server.processor_seconds() - served_before
            rounds.append((done / passed, len(one.seconds) / one.elapsed))
            tally.seconds += one.seconds
            tally.wrong += one.wrong
        alone = asyncio.run(until(server.port, requests, 1, arguments.seconds))
    finally:
        server.stop()
    ratio = statistics.median(served / own for own, served in rounds)
    print(f"throughput with {predictor.info.model}, {predictor.preprocessing.size} px, JPEGs")
    for own, served in rounds:
        print(
            f"  Predictor {own:7.1f} pictures/s   server {served:7.1f}   ratio {served / own:.2f}"
        )
    print(f"  median ratio {ratio:.2f} (wanted: 0.85)")
    each = {
        name: 1000 * seconds / (own_pictures if name == "predictor" else len(tally.seconds))
        for name, seconds in spent.items()
    }
    said = ", ".join(f"{name} {milliseconds:.1f}" for name, milliseconds in each.items())
    print(f"  processor milliseconds per picture: {said}")
    for name, one in ((f"{arguments.clients} clients", tally), ("1 client", alone)):
        p50, p99 = percentile(one.seconds, 50), percentile(one.seconds, 99)
        print(f"  latency, {name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print(f"  refused: {len(tally.wrong)}")
    return ratio >= 0.85 and not tally.wrong


def endurance(bundle: Path, arguments: argparse.Namespace) -> bool:
    predictor = Predictor(bundle)
    pictures = encoded_pictures(predictor.preprocessing.size)
    expected = [names[0][0] for names in predictor.predict(pictures)]
    server = Server(bundle, "--max-bytes", "2000000")
    load = (server.port, pictures, expected)
    try:
        # Pools, arenas and the kernels for every batch size are allocated once; then it counts.
        asyncio.run(endure(*load, max(arguments.requests // 5, 500), arguments.clients, seed=1))
        before = server.memory()
        started = time.perf_counter()
        tally = asyncio.run(endure(*load, arguments.requests, arguments.clients, seed=2))
        seconds = time.perf_counter() - started
        after = server.memory()
        status, _ = asyncio.run(Connection(server.port).ask(post(pictures[0])))
    finally:
        code = server.stop()
    growth = after / before - 1
    good = len(tally.seconds)
    print(f"endurance with {predictor.info.model}, {predictor.preprocessing.size} px")
    print(
        f"  {arguments.requests} requests in {seconds:.1f} s, {arguments.requests / seconds:.0f}/s"
    )
    print(f"  good ones answered with their own answer: {tally.good} of {good}")
    p50, p99 = percentile(tally.seconds, 50), percentile(tally.seconds, 99)
    print(f"  latency of these: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    tell_hostile(tally)
    print(f"  memory {before:.1f} -> {after:.1f} MiB, {growth:+.1%} (wanted: under +5 %)")
    print(f"  answers afterwards: {status}; exit code after SIGTERM: {code}")
    refused = all(s == 0 or 400 <= s < 500 for found in tally.hostile.values() for s in found)
    return not tally.wrong and refused and growth < 0.05 and (status, code) == (200, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="for both parts; default: drawn weights")
    parser.add_argument("--model", default="xcit_nano_12_p8", help="of drawn weights")
    parser.add_argument("--size", type=int, default=224, help="input side, throughput")
    parser.add_argument("--small", type=int, default=32, help="input side, endurance")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1, help="of the server, throughput")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6, help="of one measurement")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--only", choices=("throughput", "endurance"))
    arguments = parser.parse_args()
    fine = True
    with tempfile.TemporaryDirectory() as place:
        for part, size in ((throughput, arguments.size), (endurance, arguments.small)):
            if arguments.only in (None, part.__name__):
                bundle = arguments.bundle or drawn_bundle(
                    Path(place) / part.__name__, arguments.model, size
                )
                fine = part(bundle, arguments) and fine
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
