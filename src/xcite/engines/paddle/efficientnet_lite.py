"""EfficientNet-Lite on Paddle, see `xcite.families.efficientnet_lite`."""

import paddle.nn.functional as F
from paddle import Tensor, nn

from xcite.engines.paddle.backbone import Backbone, See, check_images, classifier, ignore
from xcite.engines.paddle.batch_norm import BatchNorm2D
from xcite.engines.paddle.recomputation import recomputed
from xcite.families.efficientnet_lite import (
    BATCH_NORM_EPS,
    Block,
    EfficientNetLiteArchitecture,
)


class ConvNorm(nn.Layer):
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
        padding = "SAME" if kernel > 1 else 0
        self.conv = nn.Conv2D(into, out, kernel, stride, padding, groups=groups, bias_attr=False)
        self.bn = BatchNorm2D(out, epsilon=BATCH_NORM_EPS)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, into, H, W) -> (B, out, ceil(H / stride), ceil(W / stride))."""
        x = self.bn(self.conv(x))
        return F.relu6(x) if self.relu else x


class InvertedBottleneck(nn.Layer):
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
        branch = self.project(self.depthwise(self.expand(x)))
        return branch + x if self.shortcut else branch


class EfficientNetLite(Backbone):
    """EfficientNet-Lite."""

    def __init__(
        self, architecture: EfficientNetLiteArchitecture, *, activation_checkpointing: bool = False
    ) -> None:
        """Build with Paddle's own initial values; `xcite.engines.paddle.build` sets the official.

        Args:
            activation_checkpointing: keep only each block's input for the backward pass.
        """
        super().__init__(architecture, activation_checkpointing)
        self.conv_stem = ConvNorm(architecture.in_chans, architecture.stem_width, 3, 2)
        self.blocks = nn.LayerList(list(map(InvertedBottleneck, architecture.blocks())))
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
        x = self.conv_stem(images)
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
