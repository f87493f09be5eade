"""AdamW by canonical names, and the moving average of all weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from xcite.engines.decay import decays
from xcite.engines.paddle.canonical_state import canonical_name, from_canonical, to_canonical
from xcite.recipe import OptimRecipe


def named_parameters(model: Any) -> dict[str, Tensor]:
    """Canonical names to the model's parameters (no buffers)."""
    # Paddle counts BatchNorm's running statistics among the parameters.
    statistics = ("._mean", "._variance")
    return {
        canonical_name(name): parameter
        for name, parameter in model.named_parameters()
        if not name.endswith(statistics)
    }


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101).

    Attributes:
        parameters: canonical names to the parameters it trains.
        steps: optimiser steps done.
    """

    def __init__(self, parameters: Mapping[str, Tensor], recipe: OptimRecipe) -> None:
        """Moments start at zero; ``recipe.decay_rule`` says which parameters decay."""
        self.parameters = dict(parameters)
        self.steps = 0
        self._clip = recipe.clip
        self._betas = recipe.betas
        decayed = {
            parameter.name
            for name, parameter in self.parameters.items()
            if decays(name, _canonical_shape(name, parameter), recipe.decay_rule)
        }
        self._adamw = paddle.optimizer.AdamW(
            recipe.lr,
            *recipe.betas,
            epsilon=recipe.eps,
            parameters=list(self.parameters.values()),
            weight_decay=recipe.weight_decay,
            apply_decay_param_fun=decayed.__contains__,
        )

    def gradients(self) -> list[Tensor]:
        """The parameters' gradients, zeros where none arrived."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = paddle.zeros_like(parameter)
        return [parameter.grad for parameter in self.parameters.values()]

    def gradient_norm(self) -> float:
        """L2 norm over all gradients."""
        with paddle.no_grad():
            squares = [(gradient * gradient).sum() for gradient in self.gradients()]
            return paddle.add_n(squares).sqrt().item()

    def step(self, learning_rate: float, gradient_norm: float) -> None:
        """One step; the gradients are scaled down first if their norm exceeds ``recipe.clip``."""
        if self._clip is not None and gradient_norm > self._clip:
            with paddle.no_grad():
                for gradient in self.gradients():
                    gradient.scale_(self._clip / gradient_norm)
        self._adamw.set_lr(learning_rate)
        self._adamw.step()
        self.steps += 1

    def clear_gradients(self) -> None:
        """Forget the gradients and free their memory."""
        self._adamw.clear_grad(set_to_zero=False)

    def moments(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """First and second moment per canonical name, canonical layout."""
        first, second = {}, {}
        state = self._adamw.state_dict()
        for name, parameter in self.parameters.items():
            nothing = paddle.zeros_like(parameter)
            first[name] = to_canonical(name, state.get(f"{parameter.name}_moment1_0", nothing))
            second[name] = to_canonical(name, state.get(f"{parameter.name}_moment2_0", nothing))
        return first, second

    def restore(
        self, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], steps: int
    ) -> None:
        """Continue from `moments` of either engine after ``steps`` steps."""
        self.steps = steps
        state = {}
        for name, parameter in self.parameters.items():
            state[f"{parameter.name}_moment1_0"] = _like(parameter, name, first[name])
            state[f"{parameter.name}_moment2_0"] = _like(parameter, name, second[name])
            # Paddle keeps beta^(steps + 1), multiplied up in float32: repeat that, bit for bit.
            for i, beta in enumerate(self._betas, 1):
                power = np.full(steps + 1, beta, np.float32).cumprod(dtype=np.float32)[-1:]
                state[f"{parameter.name}_beta{i}_pow_acc_0"] = paddle.to_tensor(power)
        self._adamw.set_state_dict(state)


class MovingAverage:
    """Exponential moving average of all weights, BatchNorm's running statistics included.

    Attributes:
        model: a second model that holds the average; always in evaluation mode.
    """

    def __init__(self, model: Any, average: Any, decay: float) -> None:
        """``average`` is a model of the same architecture; it starts as a copy of ``model``."""
        average.eval()
        self.model = average
        self.decay = decay
        self._sources = list(model.state_dict().values())
        self._averages = list(average.state_dict().values())
        with paddle.no_grad():
            for average_, source in zip(self._averages, self._sources, strict=True):
                average_.set_value(source)

    @paddle.no_grad()
    def update(self) -> None:
        """average = decay * average + (1 - decay) * weights; counters are copied."""
        for average, source in zip(self._averages, self._sources, strict=True):
            if average.is_floating_point():
                average.scale_(self.decay).add_(source * (1 - self.decay))
            else:
                average.set_value(source)


def _canonical_shape(name: str, parameter: Tensor) -> tuple[int, ...]:
    shape = tuple(parameter.shape)
    return shape[::-1] if len(shape) == 2 else shape


def _like(parameter: Tensor, name: str, array: np.ndarray) -> Tensor:
    return paddle.to_tensor(from_canonical(name, array), dtype=parameter.dtype)
