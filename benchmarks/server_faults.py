"""The server under hostile load: bombs, slow clients, idle connections, and a stop under load.

    python benchmarks/server_faults.py                                # 10,000 requests, 10 minutes
    python benchmarks/server_faults.py --requests 2000 --minutes 2    # a short one

The server runs as a process of its own, `xcite serve` on loopback; this process is the client.

1. Undisturbed: good requests at the same rate, for comparison.
2. Disturbed: one request in ten is hostile, among them decoding bombs, while idle connections are
   always opened anew, others send their head or body in drops or never fetch their answer. Every
   good request must get its own picture's answer.
3. SIGTERM while 24 clients ask, one connection per request: none may be reset, and the process must
   end within 10 s.
"""

import argparse
import asyncio
import contextlib
import io
import random
import signal
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

from PIL import Image
from server_load import (
    Connection,
    Server,
    Tally,
    best_class,
    drawn_bundle,
    encoded_pictures,
    family,
    hostile_requests,
    percentile,
    post,
    tell_hostile,
)

from xcite.runtime.predictor import Predictor


def encoded(kind: str, side: int = 7000, **options: object) -> bytes:
    """A picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "teal").save(buffer, kind, **options)
    return buffer.getvalue()


def bombs() -> dict[str, tuple[bytes, bool]]:
    """Requests whose pictures would take minutes or gigabytes, by name, as in `server_load`."""
    progressive, large = encoded("JPEG", progressive=True), encoded("PNG")
    last = progressive.rindex(b"\xff\xda")
    scan = progressive[last:-2]
    small = encoded("PNG", 64)
    chunk = struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))
    part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
    form = b"".join(part + large + b"\r\n" for _ in range(32)) + b"--b--\r\n"
    return {
        "3,000 scans": (post(progressive[:last] + 3000 * scan + b"\xff\xd9"), True),
        "50 scans": (post(progressive[:last] + 45 * scan + b"\xff\xd9"), True),
        "a million chunks": (post(small[:33] + 1_000_000 * chunk + small[33:], "image/png"), True),
        "32 times 49 megapixels": (post(form, "multipart/form-data; boundary=b"), True),
        "49 megapixels, left alone": (post(large, "image/png"), False),
    }


def memory(server: Server) -> float:
    """Resident MiB of the server and of its processes."""
    total = 0
    for pid in family(server.process.pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/status").read_text("ascii")
            total += int(text.partition("VmRSS:")[2].split()[0])
    return total / 1024


async def paced(
    port: int,
    pictures: list[bytes],
    expected: list[str],
    arguments: argparse.Namespace,
    *,
    ill: bool,
    share: float = 1.0,
) -> Tally:
    """That share of the requests at an even rate; with ``ill`` one in ten is hostile."""
    tally = Tally()
    hostile = {**hostile_requests(pictures[0]), **bombs()} if ill else {}
    names = [*hostile, *list(bombs())] if ill else []  # bombs twice as often
    requests = [post(picture) for picture in pictures]
    draw, rate = random.Random(3), arguments.requests / (60 * arguments.minutes)
    count = int(share * arguments.requests)
    begun, work = time.perf_counter(), iter(range(count))
    plan = [draw.choice(names) if ill and i % 10 == 7 else "" for i in range(count)]

    async def client() -> None:
        connection = Connection(port)
        for i in work:
            await asyncio.sleep(max(0.0, begun + i / rate - time.perf_counter()))
            if plan[i]:
                request, answer = hostile[plan[i]]
                status, _ = await Connection(port).ask(request, answer=answer)
                tally.hostile.setdefault(plan[i], set()).add(status)
                connection.close()  # it may have been idle for longer than the server waits
                continue
            started = time.perf_counter()
            status, body = await connection.ask(requests[i % len(requests)])
            tally.seconds.append(time.perf_counter() - started)
            if status == 200 and best_class(body) == expected[i % len(requests)]:
                tally.good += 1
            else:
                tally.wrong.append(f"{status} {body[:80]!r}")
        connection.close()

    await asyncio.gather(*(client() for _ in range(arguments.clients)))
    tally.elapsed = time.perf_counter() - begun
    return tally


async def burden(port: int, idle: int, slow: int) -> None:
    """Idle and slow connections, opened anew when the server closes them, until cancelled."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    many = b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n" * 2000

    async def one(first: bytes, drop: bytes) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**12)
                writer.write(first)
                while drop and not writer.is_closing():
                    writer.write(drop)
                    await asyncio.sleep(0.5)
                if first is many:
                    await asyncio.sleep(60)  # and none of it is read
                else:
                    await reader.read()
                writer.close()
            await asyncio.sleep(0.2)

    kinds = [(head, b"X"), (head + b"Content-Length: 9000000\r\n\r\n", b"x"), (many, b"")]
    tasks = [one(b"" if i % 2 else head, b"") for i in range(idle)]
    tasks += [one(*kinds[i % 3]) for i in range(slow)]
    await asyncio.gather(*tasks)


async def disturbed(
    port: int,
    pictures: list[bytes],
    expected: list[str],
    arguments: argparse.Namespace,
    share: float = 1.0,
) -> Tally:
    """Hostile requests among good ones, and connections that are a burden."""
    burdening = asyncio.create_task(burden(port, arguments.idle, arguments.slow))
    tally = await paced(port, pictures, expected, arguments, ill=True, share=share)
    burdening.cancel()
    return tally


async def stopped(server: Server, request: bytes) -> tuple[float, int, list[str]]:
    """Seconds to the end, requests answered, and what happened to others that were sent."""
    good, lost, ended = 0, [], False

    async def ask() -> None:
        nonlocal good, ended
        while not ended:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            except OSError:
                ended = True
                return
            try:
                writer.write(request)
                head = await reader.read(15)
                if head == b"HTTP/1.1 200 OK":
                    good += 1
                else:
                    lost.append(repr(head))
            except OSError as error:
                lost.append(repr(error))
            writer.close()

    callers = [asyncio.create_task(ask()) for _ in range(24)]
    await asyncio.sleep(3)
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(server.process.wait, 60)
    seconds = time.monotonic() - started
    await asyncio.wait(callers, timeout=20)
    return seconds, good, lost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="xcit_nano_12_p8", help="of drawn weights")
    parser.add_argument("--size", type=int, default=32, help="input side")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--idle", type=int, default=600)
    parser.add_argument("--slow", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        bundle = drawn_bundle(Path(place) / "bundle", arguments.model, arguments.size)
        predictor = Predictor(bundle)
        pictures = encoded_pictures(predictor.preprocessing.size)
        expected = [names[0][0] for names in predictor.predict(pictures)]
        server = Server(bundle)
        load = (server.port, pictures, expected, arguments)
        calm = asyncio.run(paced(*load, ill=False, share=0.2))
        # pools and arenas are allocated once, those for bombs too; then it counts
        asyncio.run(disturbed(*load, share=0.2))
        time.sleep(12)
        asyncio.run(paced(*load, ill=False, share=0.1))
        before = memory(server)
        tally = asyncio.run(disturbed(*load))
        time.sleep(12)
        asyncio.run(paced(*load, ill=False, share=0.1))
        after = memory(server)
        seconds, answered, lost = asyncio.run(stopped(server, post(pictures[0])))
    print(f"{arguments.requests} requests in {tally.elapsed:.0f} s, {arguments.model}")
    print(f"  good ones answered with their own answer: {tally.good} of {len(tally.seconds)}")
    for name, one in (("undisturbed", calm), ("disturbed", tally)):
        p50, p99 = percentile(one.seconds, 50), percentile(one.seconds, 99)
        print(f"  latency, {name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    tell_hostile(tally)
    growth = after / before - 1
    print(f"  memory of all processes {before:.1f} -> {after:.1f} MiB, {growth:+.1%} (under +5 %)")
    print(f"  SIGTERM under load: {seconds:.1f} s, exit {server.process.returncode}; ", end="")
    print(f"{answered} answered, lost: {len(lost)} {lost[:3]}")
    fine = not tally.wrong and growth < 0.05 and seconds < 10 and not lost
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
