"""RegNetY on PyTorch (Radosavovic et al. 2020, arXiv 2003.13678), named as in timm's regnet.py."""

from typing import Any

import torch
from torch import Tensor, nn

from xcite.engines.torch.xcit import checkpointed
from xcite.variants import RegNetArchitecture


class ConvNorm(nn.Module):
    """Convolution without bias and BatchNorm, with ReLU unless it ends a branch."""

    def __init__(
        self,
        into: int,
        out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        relu: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x.relu() if self.relu else x


class SqueezeExcite(nn.Module):
    """Channels scaled by what their means say."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * self.fc2(self.fc1(means).relu()).sigmoid()


class Bottleneck(nn.Module):
    """The Y block: 1x1, grouped 3x3, squeeze-and-excite, 1x1, all at the block's width."""

    def __init__(self, into: int, width: int, groups: int, se_ratio: float, first: bool) -> None:
        super().__init__()
        stride = 2 if first else 1
        self.conv1 = ConvNorm(into, width)
        self.conv2 = ConvNorm(width, width, 3, stride, groups)
        # Squeezed relative to the block's input, not to its width.
        self.se = SqueezeExcite(width, round(into * se_ratio)) if se_ratio else nn.Identity()
        self.conv3 = ConvNorm(width, width, relu=False)
        self.downsample = (
            ConvNorm(into, width, stride=stride, relu=False) if first else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, into, H, W) -> (B, width, H / stride, W / stride)."""
        branch = self.conv3(self.se(self.conv2(self.conv1(x))))
        return (branch + self.downsample(x)).relu()


class Head(nn.Module):
    """Mean over the grid, then the classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes) if classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x)
        return logits


class RegNet(nn.Module):
    """RegNetY.

    Attributes:
        engine: "torch".
        architecture: what it was built from.
    """

    engine = "torch"

    def __init__(
        self, architecture: RegNetArchitecture, *, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.activation_checkpointing = activation_checkpointing
        self.stem = ConvNorm(architecture.in_chans, architecture.stem_width, 3, 2)
        into = architecture.stem_width
        for s, (width, depth, groups) in enumerate(architecture.stages(), 1):
            stage = nn.Module()
            for b in range(1, depth + 1):
                block = Bottleneck(into, width, groups, architecture.se_ratio, first=b == 1)
                stage.add_module(f"b{b}", block)
                into = width
            self.add_module(f"s{s}", stage)
        self.head = Head(into, architecture.num_classes)

    def forward(self, images: Tensor, paths: Any = None) -> Tensor:
        """Logits (B, K) of normalised images (B, in_chans, H, W).

        Args:
            paths: None, as RegNet drops no paths; there so that every model is called alike.
        """
        logits: Tensor = self.head(self.forward_features(images))
        return logits

    def forward_features(self, images: Tensor, paths: Any = None) -> Tensor:
        """What the classifier sees: the mean over the grid (B, C)."""
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        for _, block in self._named_blocks():
            if self.activation_checkpointing and self.training:
                x = checkpointed(block, x)
            else:
                x = block(x)
        return x.mean((2, 3))

    def named_outputs(self, images: Tensor, paths: Any = None) -> dict[str, Tensor]:
        """Outputs of the parts in order: "stem", "s{a}.b{b}" (B, C, H, W), "head" (B, K)."""
        outputs = {"stem": self.stem(images)}
        x = outputs["stem"]
        for name, block in self._named_blocks():
            x = outputs[name] = block(x)
        outputs["head"] = self.head(x.mean((2, 3)))
        return outputs

    def _named_blocks(self) -> list[tuple[str, nn.Module]]:
        stages = range(1, len(self.architecture.stages()) + 1)
        return [
            (f"s{s}.{name}", block)
            for s in stages
            for name, block in getattr(self, f"s{s}").named_children()
        ]
