"""AdamW by canonical names, and the moving average of all weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcite.engines.decay import decays
from xcite.engines.torch.canonical_state import canonical_name, from_canonical, to_canonical
from xcite.recipe_sections import OptimRecipe

# Names of ours to those of PyTorch.
MOMENTS = {"moment1": "exp_avg", "moment2": "exp_avg_sq"}


def named_parameters(model: Any) -> dict[str, Tensor]:
    """Canonical names to the model's parameters (no buffers)."""
    return {canonical_name(name): p for name, p in model.named_parameters()}


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
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self.parameters.values()]

    def gradient_norm(self) -> Tensor:
        """L2 norm over all gradients: float32 ()."""
        return torch.nn.utils.get_total_norm(self.gradients())

    @torch.no_grad()
    def step(self, learning_rate: float, gradient_norm: Any, skip: Tensor | None = None) -> None:
        """One step; the gradients are scaled down first if their norm exceeds ``recipe.clip``.

        Args:
            gradient_norm: a number, or beside ``skip`` a tensor.
            skip: bool (), whether to change nothing after all.
        """
        if self._clip is not None and skip is not None:
            factor = (self._clip / gradient_norm.double()).clamp(max=1).float()
            torch._foreach_mul_(self.gradients(), factor)
        elif self._clip is not None and gradient_norm > self._clip:
            torch._foreach_mul_(self.gradients(), self._clip / gradient_norm)
        self._update(learning_rate, skip)
        self.queued += 1

    def broken(self, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Whether this step or one before it was not finite: bool (), decided on the device."""
        broken = ~torch.isfinite(loss + gradient_norm)
        if self._broken is not None:
            broken = broken | self._broken
        self._broken = broken
        count = broken.long()
        self._left_out = count if self._left_out is None else self._left_out + count
        return broken

    def _begin(self, steps: int) -> None:
        """Nothing is broken after ``steps`` steps."""
        self.queued, self._broken, self._left_out = steps, None, None

    def clear_gradients(self) -> None:
        """Forget the gradients and free their memory."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def _update(self, learning_rate: float, skip: Tensor | None) -> None:
        raise NotImplementedError


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    def __init__(self, parameters: Mapping[str, Tensor], recipe: OptimRecipe) -> None:
        """Moments start at zero; ``recipe.decay_rule`` says which parameters decay."""
        super().__init__(parameters, recipe)
        decayed: list[Tensor] = []
        spared: list[Tensor] = []
        for name, parameter in self.parameters.items():
            decay = decays(name, parameter.ndim, recipe.decay_rule)
            (decayed if decay else spared).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True
        )

    def state(self) -> dict[str, dict[str, np.ndarray]]:
        """The moments "moment1" and "moment2" per canonical name, canonical layout."""
        arrays: dict[str, dict[str, np.ndarray]] = {moment: {} for moment in MOMENTS}
        for name, parameter in self.parameters.items():
            kept, nothing = self._adamw.state[parameter], torch.zeros_like(parameter)
            for moment, theirs in MOMENTS.items():
                arrays[moment][name] = to_canonical(name, kept.get(theirs, nothing))
        return arrays

    def restore(self, state: Mapping[str, Mapping[str, np.ndarray]], steps: int) -> None:
        """Continue from `state` of either engine after ``steps`` steps."""
        self._begin(steps)
        for name, parameter in self.parameters.items():
            kept = {"step": torch.tensor(float(steps), device=parameter.device)}
            for moment, theirs in MOMENTS.items():
                kept[theirs] = _like(parameter, name, state[moment][name])
            self._adamw.state[parameter] = kept

    def _update(self, learning_rate: float, skip: Tensor | None) -> None:
        # The fused kernels know how to leave a step out, as gradient scaling asks them to.
        self._adamw.found_inf = None if skip is None else skip.float()
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()


class MovingAverage:
    """Exponential moving average of all weights, BatchNorm's running statistics included.

    Attributes:
        model: a second model that holds the average; always in evaluation mode.
    """

    def __init__(self, model: Any, average: Any, decay: float) -> None:
        """``average`` is a model of the same architecture; it starts as a copy of ``model``."""
        self.model = average.eval()
        self.decay = decay
        pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
        numbers = [pair for pair in pairs if pair[0].is_floating_point()]
        self._averages, self._sources = (list(each) for each in zip(*numbers, strict=True))
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        with torch.no_grad():
            for average_, source in pairs:
                average_.copy_(source)

    @torch.no_grad()
    def update(self, skip: Tensor | None = None) -> None:
        """average = decay * average + (1 - decay) * weights; counters are copied.

        Args:
            skip: bool (), whether to change nothing after all.
        """
        if skip is None:
            torch._foreach_lerp_(self._averages, self._sources, 1 - self.decay)
        else:
            differences = torch._foreach_sub(self._sources, self._averages)
            torch._foreach_mul_(differences, (1 - self.decay) * (~skip).float())
            torch._foreach_add_(self._averages, differences)
        for average, source in self._counters:
            average.copy_(source)


def keep(before: Sequence[Tensor], tensors: Sequence[Tensor], skip: Tensor) -> None:
    """Give the tensors the values they had before, where ``skip`` says so: bool ()."""
    for tensor, old in zip(tensors, before, strict=True):
        tensor.copy_(torch.where(skip, old, tensor))


def _like(parameter: Tensor, name: str, array: np.ndarray) -> Tensor:
    values = from_canonical(name, array)
    return torch.tensor(values, dtype=parameter.dtype, device=parameter.device)
