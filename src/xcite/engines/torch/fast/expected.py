"""The guard: a fast operator reads weights past a module's call only while the module is as built.

Otherwise it would bypass a hook, a LoRA or quantising wrapper, a pruned weight, another activation
or a replaced `forward`; so it then calls the module, as the plain operator does.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks

from xcite.engines.torch.xcit import LAYER_NORM_EPS

# What a type leaves open and fast operators take for granted.
SETTINGS: dict[type[nn.Module], tuple[str, Any]] = {
    nn.Conv2d: ("padding_mode", "zeros"),
    nn.LayerNorm: ("eps", LAYER_NORM_EPS),
}


def as_built(module: nn.Module, kind: type[nn.Module], *, without_bias: bool = False) -> bool:
    """Whether calling the module does what its type says, and nothing else.

    Args:
        kind: the exact type, since a subclass or a parametrised module may compute anything.
        without_bias: it may lack a bias.
    """
    if (
        type(module) is not kind
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    ):
        return False
    for name, parameter in module._parameters.items():
        if parameter is None:
            if not (without_bias and name == "bias"):
                return False
        # A quantised or distributed tensor computes in its own way; while compiling, all are fake.
        elif not (_ordinary_type(parameter) or torch.compiler.is_compiling()):
            return False
    if kind in SETTINGS:
        name, value = SETTINGS[kind]
        return bool(getattr(module, name) == value)
    return True


def ordinary(x: Tensor) -> bool:
    """Whether operations on x compute numbers with at most one reverse pass to come.

    Not so under a transform of `torch.func`, in forward-mode differentiation, in symbolic and in
    TorchScript tracing, on tensors of another type or without numbers, and while there are hooks
    for all modules.
    """
    if torch.compiler.is_compiling():
        return True
    return (
        _ordinary_type(x)
        and not x.is_meta
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch.jit.is_tracing()
        and not hooks._global_forward_hooks
        and not hooks._global_forward_pre_hooks
        and not hooks._global_backward_hooks
        and not hooks._global_backward_pre_hooks
    )


def _ordinary_type(x: Tensor) -> bool:
    return type(x) is nn.Parameter or type(x) is Tensor
