"""Training losses; distillation is a part of the loss, not a second script.

Shapes: B pictures, K classes. Everything is computed in float32, whatever the model computed in.
"""

import paddle
from paddle import Tensor
from paddle.nn.functional import cosine_similarity, log_softmax, softmax

from xcite.errors import XciteError
from xcite.recipe_sections import DistillRecipe


def loss(logits: Tensor, targets: Tensor, teacher: Tensor | None, distill: DistillRecipe) -> Tensor:
    """(1 - alpha) * soft-target cross entropy + alpha * distillation; a scalar, mean over B.

    Args:
        logits: (B, K + P) of the student, P of them through the projection of ``distill.space``.
            XCiT has no distillation token: without a projection both parts see the same K.
        targets: float32 (B, K), smoothed and mixed.
        teacher: float32 (B, K or P) logits or features, or for "hard" also int64 (B,) classes; None
            without teacher.

    Raises:
        XciteError: a distillation loss that is unknown, or without the teacher's answers.
    """
    logits = logits.astype("float32")
    classes = targets.shape[-1]
    base = soft_target_cross_entropy(logits[:, :classes], targets)
    if distill.loss == "none":
        return base
    if teacher is None:
        raise XciteError(f"distill.loss is {distill.loss!r} but the step got no teacher's answers")
    if distill.space != "classes":
        logits = logits[:, classes:]
    if distill.loss == "hard":
        part = hard(logits, teacher)
    elif distill.loss == "soft":
        part = soft(logits, teacher, distill.tau)
    elif distill.loss == "dml":
        part = mutual(logits, teacher)
    elif distill.loss == "cosine":
        part = cosine(logits, teacher)
    else:
        raise XciteError(f"distill.loss {distill.loss!r} is not computed by this engine")
    return (1 - distill.alpha) * base + distill.alpha * part


def soft_target_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over B of sum_k -t_k log p_k."""
    return -(targets * log_softmax(logits, -1)).sum(-1).mean()


def hard(logits: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy with the teacher's most likely class (facebookresearch/xcit, losses.py)."""
    classes = teacher if teacher.ndim == 1 else teacher.argmax(-1)  # (B,)
    return -log_softmax(logits, -1).take_along_axis(classes[:, None], -1).mean()


def soft(logits: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """KL(teacher || student) at temperature tau, times tau^2, divided by B * K.

    The official code divides by the number of elements, not by B, so this is K times smaller than
    the usual batch mean (facebookresearch/xcit, losses.py).
    """
    student = log_softmax(logits / tau, -1)
    teacher = log_softmax(teacher.astype("float32") / tau, -1)
    return (teacher.exp() * (teacher - student)).mean() * tau**2


def mutual(logits: Tensor, teacher: Tensor) -> Tensor:
    """Half the symmetric KL divergence, mean over B ('DML' of PASSL v1.1)."""
    tiny = 1e-12  # PASSL's guard against log(0)
    student = softmax(logits, -1)
    teacher = softmax(teacher.astype("float32"), -1)
    log_ratio = paddle.log(student + tiny) - paddle.log(teacher + tiny)
    return ((student - teacher) * log_ratio).sum(-1).mean() / 2


def cosine(projected: Tensor, features: Tensor) -> Tensor:
    """1 - the cosine of the angle between (B, P) and (B, P), mean over B."""
    return 1 - cosine_similarity(projected, features.astype("float32"), axis=-1).mean()
