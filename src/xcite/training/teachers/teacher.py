"""What the training loop needs of a teacher."""

from typing import Any, Protocol

from xcite.data.batch import Batch
from xcite.engines.staging import Staged


class Teacher(Protocol):
    """What gives the answers for a batch of pictures during distillation.

    Attributes:
        notes: what a person should know, one line each.
    """

    notes: list[str]

    def answers(self, batch: Batch, staged: Staged | None = None) -> Any:
        """Logits float32 (B, K) in the student's order of classes; classes int64 (B,) if hard.

        Args:
            staged: the batch as a training engine has it; then the answers may be its tensors.
        """

    def identity(self) -> dict[str, Any]:
        """What the teacher is, with the SHA-256 of its weights; goes with the student's weights."""

    def data_epoch(self, epoch: int) -> int:
        """Which epoch's pixels and mixing the student must see in its epoch ``epoch``."""
