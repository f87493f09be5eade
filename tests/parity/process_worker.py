"""One process of a training run that gets a Ctrl-C on its way: `process_worker.py STEPS train ...`.

Every process of a terminal gets it, here while each does the step of that number.
"""

import sys

import noise_runs
import pytest

from xcite.cli import main

if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    noise_runs.interrupt(patch, int(sys.argv[1]) - 1)
    main(sys.argv[2:])
