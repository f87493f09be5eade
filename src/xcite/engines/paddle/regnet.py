"""RegNetY on Paddle (Radosavovic et al. 2020, arXiv 2003.13678), named as in timm's regnet.py."""

from typing import Any

import paddle.nn.functional as F
from paddle import Tensor, nn

from xcite.engines.paddle.xcit import BatchNorm2D, checkpointed
from xcite.variants import RegNetArchitecture


class ConvNorm(nn.Layer):
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
        self.conv = nn.Conv2D(
            into, out, kernel, stride, kernel // 2, groups=groups, bias_attr=False
        )
        self.bn = BatchNorm2D(out)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x) if self.relu else x


class SqueezeExcite(nn.Layer):
    """Channels scaled by what their means say."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2D(width, squeezed, 1)
        self.fc2 = nn.Conv2D(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * F.sigmoid(self.fc2(F.relu(self.fc1(means))))


class Bottleneck(nn.Layer):
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
        return F.relu(branch + self.downsample(x))


class Head(nn.Layer):
    """Mean over the grid, then the classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes) if classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x)
        return logits


class RegNet(nn.Layer):
    """RegNetY.

    Attributes:
        engine: "paddle".
        architecture: what it was built from.
    """

    engine = "paddle"

    def __init__(
        self, architecture: RegNetArchitecture, *, activation_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.activation_checkpointing = activation_checkpointing
        self.stem = ConvNorm(architecture.in_chans, architecture.stem_width, 3, 2)
        into = architecture.stem_width
        for s, (width, depth, groups) in enumerate(architecture.stages(), 1):
            stage = nn.Layer()
            for b in range(1, depth + 1):
                block = Bottleneck(into, width, groups, architecture.se_ratio, first=b == 1)
                stage.add_sublayer(f"b{b}", block)
                into = width
            self.add_sublayer(f"s{s}", stage)
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
        x = self.stem(images)
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

    def _named_blocks(self) -> list[tuple[str, nn.Layer]]:
        stages = range(1, len(self.architecture.stages()) + 1)
        return [
            (f"s{s}.{name}", block)
            for s in stages
            for name, block in getattr(self, f"s{s}").named_children()
        ]
