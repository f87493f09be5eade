"""What is to be started, as a framework's launcher gets it: a JSON file in a private folder."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from xcite.errors import XciteError
from xcite.processes.line import ENDS, GRACE

FILE = "order.json"


@dataclass(frozen=True)
class Order:
    """So many processes on each of so many machines, all with one command.

    Attributes:
        processes: on this machine.
        hosts: machines, at least and at most.
        rendezvous: "host:port" that all machines can reach; "" for a single machine.
        restarts: how often all processes are started again after one was lost.
        command: of each process.
        name: of the run, the same on all machines.
        address: by which the other machines reach this one.
    """

    processes: int
    hosts: tuple[int, int]
    rendezvous: str
    restarts: int
    command: tuple[str, ...]
    name: str
    address: str = "127.0.0.1"

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Order":
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        values |= {"hosts": tuple(values["hosts"]), "command": tuple(values["command"])}
        return cls(**values)


def report_ends(folder: Path, codes: dict[int, int]) -> None:
    """Tell the supervisor the exit codes of processes that failed, by rank; -9 is SIGKILL."""
    (folder / ENDS).write_text(json.dumps(codes), encoding="utf-8")


def read_ends(folder: Path) -> dict[int, int]:
    """What `report_ends` told; nothing where it told nothing."""
    with contextlib.suppress(OSError, ValueError):
        text = (folder / ENDS).read_text(encoding="utf-8")
        return {int(rank): int(code) for rank, code in json.loads(text).items()}
    return {}


def parse_hosts(text: str) -> tuple[int, int]:
    """``--hosts``: "4", or "2:4" for at least two and at most four.

    Raises:
        XciteError: it is neither.
    """
    match = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", text.strip())
    least = int(match[1]) if match else 0
    most = int(match[2]) if match and match[2] else least
    if not 1 <= least <= most:
        raise XciteError(f"--hosts {text}: give a number of machines, 4, or a range, 2:4")
    return least, most


def parse_rendezvous(text: str) -> tuple[str, int]:
    """``--rendezvous`` as address and port.

    Raises:
        XciteError: it is no HOST:PORT, or the host has no address.
    """
    host, _, port = text.strip().rpartition(":")
    if not host or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 65536:
        raise XciteError(
            f"--rendezvous {text}: give HOST:PORT, a machine of the run that all others reach and "
            "a free port of it, such as node1:29400"
        )
    try:
        found = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise XciteError(f"--rendezvous {text}: {host} has no address ({error.strerror})") from None
    return str(found[0][4][0]), int(port)


def can_host(address: str, port: int) -> bool:
    """Whether this machine has the address, and no other process of it has the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
        except OSError:
            return False
    return True


def own_address(towards: str, port: int) -> str:
    """This machine's address on the way to another.

    Raises:
        XciteError: there is no way.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # nothing is sent
        try:
            probe.connect((towards, port))
            return str(probe.getsockname()[0])
        except OSError as error:
            raise XciteError(
                f"--rendezvous {towards}:{port} cannot be reached from here: {error.strerror}"
            ) from None


def interface(address: str) -> str | None:
    """The network interface with this address; None where the system does not say.

    gloo takes the one that the machine's own name leads to, which often is the loopback.
    """
    if sys.platform != "linux":
        return None
    import fcntl
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), 0x8915, request)  # SIOCGIFADDR
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def die_with_parent() -> None:
    """End when the process that started this one has ended, by SIGTERM if that is enough."""
    parent = os.getppid()

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)  # waiting for another machine, compiled code hears no signals
        os._exit(2)

    threading.Thread(target=follow, daemon=True, name="xcite parent").start()
