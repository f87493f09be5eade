"""RegNetY on PyTorch (Radosavovic et al. 2020, arXiv 2003.13678), named as in timm's regnet.py."""

import torch
from torch import Tensor, nn

from xcite.engines.torch.backbone import Backbone, See, check_images, ignore
from xcite.engines.torch.batch_norm import BatchNorm2D
from xcite.engines.torch.recomputation import recomputed
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
        self.bn = BatchNorm2D(out)
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


class RegNet(Backbone):
    """RegNetY."""

    def __init__(
        self, architecture: RegNetArchitecture, *, activation_checkpointing: bool = False
    ) -> None:
        """Build with PyTorch's own initial values; `xcite.engines.torch.build` sets the official.

        Args:
            activation_checkpointing: keep only each block's input for the backward pass.
        """
        super().__init__(architecture, activation_checkpointing)
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

    def walk(self, images: Tensor, paths: Tensor | None = None, see: See | None = None) -> Tensor:
        """The last block's map (B, C, H / 32, W / 32).

        Args:
            paths: taken so that every model is called alike; RegNet drops no paths.
            see: is told "stem" and "s{stage}.b{block}" as (B, C, H, W).
        """
        see = see or ignore
        check_images(images, self.architecture.in_chans)
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        see("stem", x)
        for s in range(1, len(self.architecture.stages()) + 1):
            for b, block in getattr(self, f"s{s}").named_children():
                again = self.activation_checkpointing and self.training
                x = (recomputed(block) if again else block)(x)
                see(f"s{s}.{b}", x)
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """What the classifier sees: the mean over the grid (B, C)."""
        return x.mean((2, 3))

    def set_classifier(self, layer: nn.Module) -> None:
        """Put the classifier where the model has it."""
        self.head.fc = layer
