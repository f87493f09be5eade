"""AdamW by canonical names, and the moving average of all weights."""

from collections.abc import Mapping
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
        steps: optimiser steps done.
    """

    def __init__(self, parameters: Mapping[str, Tensor], recipe: OptimRecipe) -> None:
        self.parameters = dict(parameters)
        self.steps = 0
        self._clip = recipe.clip

    def gradients(self) -> list[Tensor]:
        """The parameters' gradients, zeros where none arrived."""
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self.parameters.values()]

    def gradient_norm(self) -> float:
        """L2 norm over all gradients."""
        return torch.nn.utils.get_total_norm(self.gradients()).item()

    def step(self, learning_rate: float, gradient_norm: float) -> None:
        """One step; the gradients are scaled down first if their norm exceeds ``recipe.clip``."""
        if self._clip is not None and gradient_norm > self._clip:
            with torch.no_grad():
                for gradient in self.gradients():
                    gradient.mul_(self._clip / gradient_norm)
        self._update(learning_rate)
        self.steps += 1

    def clear_gradients(self) -> None:
        """Forget the gradients and free their memory."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def _update(self, learning_rate: float) -> None:
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
        self.steps = steps
        for name, parameter in self.parameters.items():
            kept = {"step": torch.tensor(float(steps), device=parameter.device)}
            for moment, theirs in MOMENTS.items():
                kept[theirs] = _like(parameter, name, state[moment][name])
            self._adamw.state[parameter] = kept

    def _update(self, learning_rate: float) -> None:
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
        self._sources = list(model.state_dict().values())
        self._averages = list(average.state_dict().values())
        with torch.no_grad():
            for average_, source in zip(self._averages, self._sources, strict=True):
                average_.copy_(source)

    @torch.no_grad()
    def update(self) -> None:
        """average = decay * average + (1 - decay) * weights; counters are copied."""
        for average, source in zip(self._averages, self._sources, strict=True):
            if average.is_floating_point():
                average.lerp_(source, 1 - self.decay)
            else:
                average.copy_(source)


def _like(parameter: Tensor, name: str, array: np.ndarray) -> Tensor:
    values = from_canonical(name, array)
    return torch.tensor(values, dtype=parameter.dtype, device=parameter.device)
