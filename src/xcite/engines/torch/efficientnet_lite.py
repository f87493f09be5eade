"""EfficientNet-Lite on PyTorch, see `xcite.families.efficientnet_lite`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcite.engines.torch.backbone import Backbone, See, check_images, classifier, ignore
from xcite.engines.torch.batch_norm import BatchNorm2D
from xcite.engines.torch.recomputation import recomputed
from xcite.families.efficientnet_lite import (
    BATCH_NORM_EPS,
    Block,
    EfficientNetLiteArchitecture,
)


class ConvNorm(nn.Module):
    """Convolution without bias, padded as TensorFlow pads, and BatchNorm; ReLU6 if wished."""

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
        self.conv = nn.Conv2d(into, out, kernel, stride, groups=groups, bias=False)
        self.bn = BatchNorm2D(out, eps=BATCH_NORM_EPS)
        self.kernel, self.stride, self.relu = kernel, stride, relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, into, H, W) -> (B, out, ceil(H / stride), ceil(W / stride))."""
        if self.kernel > 1:
            # What "same" lacks, one more behind where it is odd; the last axis is padded first.
            k, s = self.kernel, self.stride
            lacking = [max((-(-n // s) - 1) * s + k - n, 0) for n in (x.shape[3], x.shape[2])]
            x = F.pad(x, [part for n in lacking for part in (n // 2, n - n // 2)])
        x = self.bn(self.conv(x))
        return F.relu6(x) if self.relu else x


class InvertedBottleneck(nn.Module):
    """Expand, depthwise, project; with a shortcut where nothing changes its shape."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        hidden = block.hidden
        self.expand = ConvNorm(block.into, hidden) if block.expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(hidden, hidden, block.kernel, block.stride, hidden)
        self.project = ConvNorm(hidden, block.width, relu=False)
        self.shortcut = block.shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, into, H, W) -> (B, width, H / stride, W / stride)."""
        branch: Tensor = self.project(self.depthwise(self.expand(x)))
        return branch + x if self.shortcut else branch


class EfficientNetLite(Backbone):
    """EfficientNet-Lite."""

    def __init__(
        self, architecture: EfficientNetLiteArchitecture, *, activation_checkpointing: bool = False
    ) -> None:
        """Build with PyTorch's own initial values; `xcite.engines.torch.build` sets the official.

        Args:
            activation_checkpointing: keep only each block's input for the backward pass.
        """
        super().__init__(architecture, activation_checkpointing)
        self.conv_stem = ConvNorm(architecture.in_chans, architecture.stem_width, 3, 2)
        self.blocks = nn.ModuleList(map(InvertedBottleneck, architecture.blocks()))
        self.conv_head = ConvNorm(architecture.widths[-1], architecture.features)
        self.head = classifier(architecture.features, architecture.num_classes)

    def walk(self, images: Tensor, paths: Tensor | None = None, see: See | None = None) -> Tensor:
        """The last map (B, C, H / 32, W / 32).

        Args:
            paths: taken so that every model is called alike; this one drops no paths.
            see: is told "conv_stem", "blocks.{n}" and "conv_head" as (B, C, H, W).
        """
        see = see or ignore
        check_images(images, self.architecture.in_chans)
        x = self.conv_stem(images.contiguous(memory_format=torch.channels_last))
        see("conv_stem", x)
        for n, block in enumerate(self.blocks):
            again = self.activation_checkpointing and self.training
            x = (recomputed(block) if again else block)(x)
            see(f"blocks.{n}", x)
        x = self.conv_head(x)
        see("conv_head", x)
        return x

    def pooled(self, x: Tensor) -> Tensor:
        """What the classifier sees: the mean over the grid (B, C)."""
        return x.mean((2, 3))
