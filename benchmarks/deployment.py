"""How much faster is the folded graph than the official model's, on the same runtime?

    python benchmarks/deployment.py [--rounds 15] [--models xcit_nano_12_p8 ...] [--threads 2]

The yardstick is the model of plain operators on PyTorch, exported by torch.onnx with the same
weights. Both graphs run on the same runtime with the same options, compiled for the batch size,
ours as `xcite.Predictor` does it (with AVX2 alone it rewrites the graph), by turns in one process;
a ratio is that of the medians. int8 is compared with the yardstick in bfloat16. Precisions that the
processor has no instructions for are left out.
Prints a Markdown table, with the least ratio asked for where there is one.
"""

import argparse
import gc
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np

from xcite import canonical, variants
from xcite.export import graph
from xcite.export.quantization import quantise
from xcite.processor import this_processor
from xcite.runtime import avx2_graphs
from xcite.runtime.precision import native
from xcite.runtime.programs import compile_openvino
from xcite.runtime.turns import by_turns

SIZE = 224
# model: batch: (runtime, precision, least ratio)
CASES = {
    "xcit_nano_12_p8": {
        16: [
            ("openvino", "f32", 1.4),
            ("openvino", "bf16", 1.25),
            ("openvino", "int8", 1.5),
            ("onnxruntime", "f32", None),
        ],
        1: [("openvino", "f32", 1.0), ("openvino", "bf16", 1.0), ("onnxruntime", "f32", 1.0)],
    },
    "xcit_tiny_12_p8": {
        16: [("openvino", "f32", 1.2), ("openvino", "bf16", 1.2), ("onnxruntime", "f32", None)],
        1: [("openvino", "f32", 1.0), ("openvino", "bf16", 1.0), ("onnxruntime", "f32", 1.0)],
    },
    "xcit_small_12_p16": {
        16: [("openvino", "f32", 1.0), ("openvino", "bf16", 1.0), ("onnxruntime", "f32", None)],
        1: [("openvino", "f32", 1.0), ("openvino", "bf16", 1.0), ("onnxruntime", "f32", 1.0)],
    },
}


def official(
    architecture: variants.XCiTArchitecture, weights: canonical.Weights, batch: int
) -> bytes:
    """The yardstick as an ONNX file of that batch size."""
    import torch

    from xcite.engines.torch import build, load_weights

    model = build(architecture, operators="plain", seed=None).eval()
    load_weights(model, weights)
    file = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(batch, architecture.in_chans, SIZE, SIZE),),
            file,
            input_names=["images"],
            output_names=["logits"],
            opset_version=17,
            dynamo=False,
        )
    return file.getvalue()


def ours(
    architecture: variants.XCiTArchitecture, weights: canonical.Weights, precision: str
) -> bytes:
    """The folded graph as an ONNX file."""
    proto = graph.build(weights, architecture, size=(SIZE, SIZE), bf16=precision != "f32")
    return proto.SerializeToString()


def runner(
    model: bytes, runtime: str, precision: str, images: np.ndarray, threads: int, product: bool
) -> Callable[[], np.ndarray]:
    """A function that computes the logits of ``images``; product: as `xcite.Predictor` does."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"images": images})[0]
    import openvino

    core = openvino.Core()
    read = core.read_model(model)
    if precision == "int8":
        rng = np.random.default_rng(1)
        shape = (1, *images.shape[1:])
        read = quantise(read, [rng.standard_normal(shape).astype(np.float32) for _ in range(8)])
    read.reshape(list(images.shape))
    if product and avx2_graphs.pay(precision):
        avx2_graphs.rewrite(read)
    compiled = compile_openvino(core, read, precision, threads, streams=1)
    request = compiled.create_infer_request()

    def run() -> np.ndarray:
        request.set_input_tensor(openvino.Tensor(images, True))
        request.infer()
        return np.array(request.get_output_tensor(0).data)

    return run


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 1])
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor time, not the clock's: for a busy machine, with --threads 1",
    )
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    print(
        "| model | batch | runtime | precision | official, img/s | Xcite, img/s | ratio | asked |"
    )
    print("| --- | ---: | --- | --- | ---: | ---: | ---: | ---: |")
    for name in arguments.models:
        architecture = variants.find(name)
        assert isinstance(architecture, variants.XCiTArchitecture)
        weights = canonical.initial_weights(architecture, 0)
        for batch, cases in CASES[name].items():
            if batch not in arguments.batches:
                continue
            reference = official(architecture, weights, batch)
            shape = (batch, architecture.in_chans, SIZE, SIZE)
            images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            for runtime, precision, least in cases:
                if not native(precision, this_processor()):
                    continue
                graphs = reference, ours(architecture, weights, precision)
                precisions = ("bf16" if precision == "int8" else precision, precision)
                runs = [
                    runner(model, runtime, kind, images, arguments.threads, product)
                    for model, kind, product in zip(graphs, precisions, (False, True), strict=True)
                ]
                expected, found = (run() for run in runs)
                share = np.abs(expected - found).max() / np.abs(expected).max()
                assert share < (1e-4 if precision == "f32" else 0.2), f"{name}: off by {share:.1e}"
                turns = by_turns(runs, rounds=arguments.rounds, clock=clock)
                times = [statistics.median(seconds) for seconds in turns]
                print(
                    f"| {name} | {batch} | {runtime} | {precision} | {batch / times[0]:.1f} | "
                    f"{batch / times[1]:.1f} | {times[0] / times[1]:.2f} | {least or ''} |",
                    flush=True,
                )
                del runs
                gc.collect()


if __name__ == "__main__":
    main()
