"""TorchScript, which cannot compile models that choose their operators in Python."""

from typing import Any

from torch import nn

from xcite.errors import XciteError


class NotScriptable(nn.Module):
    """A module that says so when `torch.jit.script` asks."""

    def __prepare_scriptable__(self) -> Any:
        raise XciteError(
            "TorchScript cannot compile this model; use torch.jit.trace, torch.export or "
            "torch.compile"
        )
