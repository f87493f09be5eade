"""AdamW by canonical names, and the moving average of all weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from xcite.engines.decay import decays
from xcite.engines.paddle.canonical_state import canonical_name, from_canonical, to_canonical
from xcite.recipe_sections import OptimRecipe

# Names of ours to those of Paddle.
MOMENTS = {"moment1": "moment1_0", "moment2": "moment2_0"}


def named_parameters(model: Any) -> dict[str, Tensor]:
    """Canonical names to the model's parameters (no buffers)."""
    # Paddle counts BatchNorm's running statistics among the parameters.
    statistics = ("._mean", "._variance")
    return {
        canonical_name(name): parameter
        for name, parameter in model.named_parameters()
        if not name.endswith(statistics)
    }


class Optimizer:
    """What every optimiser does with the gradients of its parameters.

    A subclass adds `_update`, and `state` and `restore` under names of its own.

    Attributes:
        parameters: canonical names to the parameters it trains.
        queued: optimiser steps asked for.
    """

    def __init__(self, parameters: Mapping[str, Tensor], recipe: OptimRecipe) -> None:
        self.parameters = dict(parameters)
        self.queued = 0
        self._clip = recipe.clip
        self._broken: Tensor | None = None
        self._left_out: Tensor | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return self.queued - (0 if self._left_out is None else int(self._left_out))

    def gradients(self) -> list[Tensor]:
        """The parameters' gradients, zeros where none arrived."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = paddle.zeros_like(parameter)
        return [parameter.grad for parameter in self.parameters.values()]

    @paddle.no_grad()
    def gradient_norm(self) -> Tensor:
        """L2 norm over all gradients: float32 ()."""
        squares = [(gradient * gradient).sum() for gradient in self.gradients()]
        return paddle.add_n(squares).sqrt()

    @paddle.no_grad()
    def step(self, learning_rate: float, gradient_norm: Any, skip: Tensor | None = None) -> None:
        """One step; the gradients are scaled down first if their norm exceeds ``recipe.clip``.

        Args:
            gradient_norm: a number, or beside ``skip`` a tensor.
            skip: bool (), whether to change nothing after all.
        """
        if self._clip is not None and skip is not None:
            factor = (self._clip / gradient_norm.astype("float64")).clip(max=1).astype("float32")
            for gradient in self.gradients():
                gradient.multiply_(factor)
        elif self._clip is not None and gradient_norm > self._clip:
            for gradient in self.gradients():
                gradient.scale_(self._clip / gradient_norm)
        self._update(learning_rate, skip)
        self.queued += 1

    def broken(self, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Whether this step or one before it was not finite: bool (), decided on the device."""
        broken = ~paddle.isfinite(loss + gradient_norm)
        if self._broken is not None:
            broken = broken | self._broken
        self._broken = broken
        count = broken.astype("int64")
        self._left_out = count if self._left_out is None else self._left_out + count
        return broken

    def _begin(self, steps: int) -> None:
        """Nothing is broken after ``steps`` steps."""
        self.queued, self._broken, self._left_out = steps, None, None

    def clear_gradients(self) -> None:
        """Forget the gradients and free their memory."""
        for parameter in self.parameters.values():
            parameter.clear_gradient(set_to_zero=False)

    def _update(self, learning_rate: float, skip: Tensor | None) -> None:
        raise NotImplementedError


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    def __init__(self, parameters: Mapping[str, Tensor], recipe: OptimRecipe) -> None:
        """Moments start at zero; ``recipe.decay_rule`` says which parameters decay."""
        super().__init__(parameters, recipe)
        self._betas = recipe.betas
        decayed = {
            parameter.name
            for name, parameter in self.parameters.items()
            if decays(name, parameter.ndim, recipe.decay_rule)
        }
        self._adamw = paddle.optimizer.AdamW(
            recipe.lr,
            *recipe.betas,
            epsilon=recipe.eps,
            parameters=list(self.parameters.values()),
            weight_decay=recipe.weight_decay,
            apply_decay_param_fun=decayed.__contains__,
        )

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """The moments "moment1" and "moment2" per canonical name, canonical layout."""
        arrays: dict[str, dict[str, np.ndarray]] = {moment: {} for moment in MOMENTS}
        kept = self._adamw.state_dict()
        for name, parameter in self.parameters.items():
            nothing = paddle.zeros_like(parameter)
            for moment, theirs in MOMENTS.items():
                tensor = kept.get(f"{parameter.name}_{theirs}", nothing)
                arrays[moment][name] = to_canonical(name, tensor)
        return arrays

    def restore(self, state: Mapping[str, Mapping[str, np.ndarray]], steps: int) -> None:
        """Continue from `state` of either engine after ``steps`` steps."""
        self._begin(steps)
        kept = {}
        for name, parameter in self.parameters.items():
            for moment, theirs in MOMENTS.items():
                kept[f"{parameter.name}_{theirs}"] = _like(parameter, name, state[moment][name])
            # Paddle keeps beta^(steps + 1), multiplied up in float32: repeat that, bit for bit.
            for i, beta in enumerate(self._betas, 1):
                power = np.full(steps + 1, beta, np.float32).cumprod(dtype=np.float32)[-1:]
                kept[f"{parameter.name}_beta{i}_pow_acc_0"] = paddle.to_tensor(power)
        self._adamw.set_state_dict(kept)

    def _update(self, learning_rate: float, skip: Tensor | None) -> None:
        self._adamw.set_lr(learning_rate)
        if skip is None:
            self._adamw.step()
            return
        # Paddle's kernel can leave a step out, too, but waits to read what the device decided.
        parameters = list(self.parameters.values())
        names = [f"{p.name}_{theirs}" for p in parameters for theirs in MOMENTS.values()]
        kept = self._adamw.state_dict()
        before = [tensor.clone() for tensor in parameters]
        before += [kept[name].clone() for name in names if name in kept]
        self._adamw.step()
        kept = self._adamw.state_dict()
        changed = parameters + [kept[name] for name in names]
        before += [paddle.zeros_like(moment) for moment in changed[len(before) :]]  # the first step
        keep(before, changed, skip)


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
    def update(self, skip: Tensor | None = None) -> None:
        """average = decay * average + (1 - decay) * weights; counters are copied.

        Args:
            skip: bool (), whether to change nothing after all.
        """
        before = [] if skip is None else [average.clone() for average in self._averages]
        for average, source in zip(self._averages, self._sources, strict=True):
            if average.is_floating_point():
                average.scale_(self.decay).add_(source * (1 - self.decay))
            else:
                average.set_value(source)
        if skip is not None:
            keep(before, self._averages, skip)


def keep(before: Sequence[Tensor], tensors: Sequence[Tensor], skip: Tensor) -> None:
    """Give the tensors the values they had before, where ``skip`` says so: bool ()."""
    for tensor, old in zip(tensors, before, strict=True):
        paddle.assign(paddle.where(skip, old, tensor), tensor)


def _like(parameter: Tensor, name: str, array: np.ndarray) -> Tensor:
    values = from_canonical(name, array)
    return paddle.to_tensor(values, dtype=parameter.dtype)
