"""Run an exported program with Paddle Inference on oneDNN."""

from pathlib import Path

import numpy as np
from paddle import inference

from xcite.engines.vector_instructions import use_vector_instructions


class Program:
    """What `Engine.save_program` wrote. Not to be called by two threads at once."""

    def __init__(self, path: Path, *, threads: int) -> None:
        """Load ``path.json`` and ``path.pdiparams``."""
        use_vector_instructions()
        config = inference.Config(f"{path}.json", f"{path}.pdiparams")
        config.disable_gpu()
        config.set_cpu_math_library_num_threads(threads)
        config.enable_mkldnn()
        config.disable_glog_info()
        self._predictor = inference.create_predictor(config)
        self._input = self._predictor.get_input_handle(self._predictor.get_input_names()[0])
        self._output = self._predictor.get_output_handle(self._predictor.get_output_names()[0])

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits float32 (B, K) of normalised float32 images (B, C, H, W)."""
        self._input.reshape(list(images.shape))
        self._input.copy_from_cpu(images)
        self._predictor.run()
        logits: np.ndarray = self._output.copy_to_cpu()
        return logits
