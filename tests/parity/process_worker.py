"""One of several training processes with its share of a batch: `process_worker.py ENGINE OUT`."""

import sys

import numpy as np
import tiny_training

from xcite.data.batch import split
from xcite.randomness import drop_path_scales


def main(name, out):
    engine = tiny_training.start(name, ema=0.5, engine={"threads": 1})
    results = []
    for number in range(2):
        part = split(tiny_training.batch(number, size=8), engine.world_size)[engine.rank]
        paths = drop_path_scales(0, 0, part.views, 2, 0.2)
        result = engine.train_step([part], learning_rate=1e-3, paths=[paths], teacher=[None])
        results.append([result.loss, result.gradient_norm])
    ranks = engine.average(np.array([float(engine.rank)]))
    state = engine.training_state()
    np.savez(f"{out}-{engine.rank}.npz", results=results, ranks=ranks, **state)


if __name__ == "__main__":
    main(*sys.argv[1:])
