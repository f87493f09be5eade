"""AdamW by canonical names, and the moving average of all weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcite.engines.decay import decays
from xcite.engines.torch.canonical_state import from_canonical, to_canonical
from xcite.recipe import OptimRecipe


def named_parameters(model: Any) -> dict[str, Tensor]:
    """Canonical names to the model's parameters (no buffers)."""
    return dict(model.named_parameters())


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
        decayed: list[Tensor] = []
        spared: list[Tensor] = []
        for name, parameter in self.parameters.items():
            shape = tuple(parameter.shape)
            (decayed if decays(name, shape, recipe.decay_rule) else spared).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True
        )

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
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        self._adamw.step()
        self.steps += 1

    def clear_gradients(self) -> None:
        """Forget the gradients and free their memory."""
        self._adamw.zero_grad(set_to_none=True)

    def moments(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """First and second moment per canonical name, canonical layout."""
        first, second = {}, {}
        for name, parameter in self.parameters.items():
            state = self._adamw.state[parameter]
            nothing = torch.zeros_like(parameter)
            first[name] = to_canonical(name, state.get("exp_avg", nothing))
            second[name] = to_canonical(name, state.get("exp_avg_sq", nothing))
        return first, second

    def restore(
        self, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], steps: int
    ) -> None:
        """Continue from `moments` of either engine after ``steps`` steps."""
        self.steps = steps
        for name, parameter in self.parameters.items():
            self._adamw.state[parameter] = {
                "step": torch.tensor(float(steps), device=parameter.device),
                "exp_avg": _like(parameter, from_canonical(name, first[name])),
                "exp_avg_sq": _like(parameter, from_canonical(name, second[name])),
            }


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


def _like(parameter: Tensor, array: np.ndarray) -> Tensor:
    return torch.tensor(array, dtype=parameter.dtype, device=parameter.device)
