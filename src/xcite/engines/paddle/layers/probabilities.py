"""A classifier as PaddleClas' predictors take it: probabilities first."""

from paddle import Tensor, nn


class WithProbabilities(nn.Layer):
    """Gives softmax and logits, both (B, K), of the model inside."""

    def __init__(self, model: nn.Layer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of images (B, C, H, W)."""
        logits = self.model(images)
        return nn.functional.softmax(logits, axis=-1), logits
