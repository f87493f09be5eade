"""Feature maps of four strides, as detection and segmentation want them."""

import math

from paddle import Tensor, nn

from xcite.engines.intermediates import pyramid_blocks
from xcite.engines.paddle.batch_norm import BatchNorm2D
from xcite.engines.paddle.xcit import XCiT
from xcite.variants import XCiTArchitecture


class FeaturePyramid(nn.Layer):
    """Four maps of strides 4, 8, 16 and 32 for dense tasks, as the official detection backbone.

    Tokens of four blocks are enlarged by transposed convolutions or reduced by maximum pooling.
    """

    def __init__(self, model: XCiT) -> None:
        super().__init__()
        self.model = model
        self.levels = nn.LayerList(
            [self._level(model.architecture, stride) for stride in (4, 8, 16, 32)]
        )

    @staticmethod
    def _level(architecture: XCiTArchitecture, stride: int) -> nn.Layer:
        dim, patch = architecture.embed_dim, architecture.patch_size
        if stride == patch:
            return nn.Identity()
        if stride > patch:
            return nn.MaxPool2D(stride // patch)
        layers: list[nn.Layer] = [nn.Conv2DTranspose(dim, dim, 2, 2)]
        for _ in range(int(math.log2(patch // stride)) - 1):
            layers += [BatchNorm2D(dim), nn.GELU(), nn.Conv2DTranspose(dim, dim, 2, 2)]
        return nn.Sequential(*layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, in_chans, H, W) -> four maps (B, C, H / s, W / s)."""
        blocks = pyramid_blocks(self.model.architecture.depth)
        maps = self.model.forward_intermediates(images, blocks, intermediates_only=True)
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]
