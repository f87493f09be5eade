"""One of the processes that `xcite train --processes` has had started; not a command of its own."""

import os
import shlex
import sys

from xcite import cli
from xcite.errors import XciteError
from xcite.processes import environment, line
from xcite.processes.line import End
from xcite.processes.lost import ProcessLost, lost


def main(engine: str, arguments: list[str]) -> int:
    """Run a command as this process's part of it; what the launcher is to see as exit code.

    A run that was stopped counts as success there, as nothing is to be started again.
    """
    place = environment.place(engine)
    try:
        supervisor = line.join(place.rank, place.size)
    except OSError:
        return 2  # nobody is there any more
    # What the run folder keeps as its command says how it was started, too.
    sys.argv[1:] = [*arguments, *shlex.split(environment.launch_options())]
    end = End(0)

    def tell(error: Exception, said: str) -> None:
        nonlocal end
        end = End(2, said, lost=isinstance(error, ProcessLost))

    try:
        cli.main(arguments, tell=tell)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        if end.code != 2:
            end = End(code)
    except KeyboardInterrupt:
        end = End(130)
    except Exception as error:
        gone = lost(error) if place.size > 1 else None
        told: XciteError = gone or XciteError(f"{type(error).__name__}: {error}")
        tell(told, " ".join(str(told).split()))
    supervisor.ended(end)
    return 0 if end.code in (0, 130) else end.code


if __name__ == "__main__":
    code = main(sys.argv[1], sys.argv[2:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code) if code else sys.exit(0)
