"""One of several processes that serve the same socket, started and watched by `workers`.

    python -m xcite.server.worker CHANNEL LISTENER FOLDER NUMBER COUNT

Its settings, with the token, come over the channel, not in the process list. When the channel is
closed, the process that watches has ended, and so does this one, after its last answers.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path

from xcite.errors import XciteError
from xcite.server.decoding_worker import receive, send
from xcite.server.serving import Membership, Serving, Settings
from xcite.server.signs import Signs


class SharedListener(socket.socket):
    """A listening socket of several event loops.

    asyncio takes the length of the queue for the number of connections to accept at once. One at a
    time leaves some to the other processes; the queue must stay long for that.
    """

    def listen(self, backlog: int = 0, /) -> None:
        """It listens already."""


def main() -> None:
    """Serve until a signal or until nobody watches any more."""
    channel, listener = (
        socket.socket(fileno=int(sys.argv[1])),
        SharedListener(fileno=int(sys.argv[2])),
    )
    folder, number, count = sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
    signs = Signs(Path(folder) / "signs", count)
    try:
        settings = Settings.of_text(receive(channel))
        serving = Serving(settings, Membership(folder, number, signs))
        serving.warm_up()
    except EOFError:
        return  # nobody watches any more
    except XciteError as error:
        send(channel, json.dumps({"error": str(error)}).encode())
        sys.exit(2)
    signs.give(number)
    with contextlib.suppress(OSError):  # nobody watches any more: see `_end_when_alone`
        send(channel, json.dumps({"memory": serving.memory()}).encode())
    threading.Thread(target=_end_when_alone, args=(channel, folder), daemon=True).start()
    serving.run(listener)


def _end_when_alone(channel: socket.socket, folder: str) -> None:
    with contextlib.suppress(OSError):  # it is reset if what was sent on it was not read
        channel.recv(1)
    shutil.rmtree(folder, ignore_errors=True)  # nobody else does it now
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
