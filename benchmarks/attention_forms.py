"""Where the covariance form of cross-covariance attention becomes the faster one.

    python benchmarks/attention_forms.py [--repeats 9] [--batch 16]

Forward and backward of one XCA layer in its usual and its covariance form, for several numbers of
tokens per channel N / d; wider layers get fewer pictures. Turns alternate in one process, with all
cores. Each number is the ratio of medians, usual over covariance: above 1 the covariance form is
the faster one. `xcite.engines.attention_form.TOKENS_PER_CHANNEL` comes from this table.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

from xcite.engines.allocation import keep_freed_memory
from xcite.variants import XCiTArchitecture

THREADS = len(os.sched_getaffinity(0))
TOKENS_PER_CHANNEL = (0.5, 1, 1.25, 1.5, 1.75, 2, 3, 6)
# Widths and heads of nano, small and large.
WIDTHS = {128: 4, 384: 8, 768: 16}
KINDS = (("torch", "float32"), ("torch", "bf16"), ("paddle", "float32"))


def torch_step(form: str, width: int, tokens: int, batch: int, bf16: bool) -> Callable[[], None]:
    """A function that does one forward and backward pass on PyTorch."""
    import torch

    from xcite.engines.torch.fast import accelerate
    from xcite.engines.torch.xcit import XCA

    torch.set_num_threads(THREADS)
    layer = accelerate(XCA(XCiTArchitecture(16, width, 1, WIDTHS[width])), form).train()
    x = torch.randn(batch, tokens, width, requires_grad=True)
    gamma, cotangent = torch.ones(width), torch.randn(batch, tokens, width)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = layer.branch(x, gamma)
        y.backward(cotangent.to(y.dtype))
        layer.zero_grad()
        x.grad = None

    return step


def paddle_step(form: str, width: int, tokens: int, batch: int, bf16: bool) -> Callable[[], None]:
    """A function that does one forward and backward pass on Paddle, which has no bf16 on a CPU."""
    import paddle

    from xcite.engines.paddle.fast import accelerate
    from xcite.engines.paddle.xcit import XCA

    paddle.base.core.set_num_threads(THREADS)
    layer = accelerate(XCA(XCiTArchitecture(16, width, 1, WIDTHS[width])), form)
    layer.train()
    x = paddle.randn([batch, tokens, width])
    x.stop_gradient = False
    gamma, cotangent = paddle.ones([width]), paddle.randn([batch, tokens, width])

    def step() -> None:
        layer.branch(x, gamma).backward(cotangent)
        layer.clear_gradients()
        x.clear_gradient()

    return step


STEPS = {"torch": torch_step, "paddle": paddle_step}


def ratio(engine: str, precision: str, width: int, tokens: int, batch: int, repeats: int) -> float:
    """Median time of the usual form over that of the covariance form."""
    bf16 = precision == "bf16"
    steps = [STEPS[engine](form, width, tokens, batch, bf16) for form in ("usual", "covariance")]
    seconds: list[list[float]] = [[], []]
    for turn in range(repeats + 2):
        for step, taken in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step()
            if turn > 1:
                taken.append(time.perf_counter() - start)
    usual, covariance = map(statistics.median, seconds)
    return usual / covariance


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    keep_freed_memory()
    columns = [(engine, precision, width) for engine, precision in KINDS for width in WIDTHS]
    titles = [f"{engine}, {precision}, d = {width}" for engine, precision, width in columns]
    print(f"| tokens per channel | {' | '.join(titles)} |")
    print(f"|{' --- |' * (len(columns) + 1)}", flush=True)
    for per_channel in TOKENS_PER_CHANNEL:
        row = [
            f"{ratio(*column, int(per_channel * column[2]), batch, options.repeats):.2f}"
            for column in columns
            for batch in [options.batch * min(WIDTHS) // column[2]]
        ]
        print(f"| {per_channel} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
