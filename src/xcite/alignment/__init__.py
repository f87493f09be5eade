"""Do two engines, or an engine and somebody's own port, compute the same?

Both sides start from the same weights and see the same batches (`trial`). `measuring`
takes, layer group by layer group, the activations (evaluation and training mode), the loss, the
gradients, the weights after one optimiser step, BatchNorm's running statistics, and the losses of
some more steps; `comparison` holds them against stated tolerances. Everything is float32, without
dropout, at a constant learning rate. A side may also be a folder of files (`dump`).
"""

from typing import TYPE_CHECKING

from xcite.lazy_modules import lazy_modules

if not TYPE_CHECKING:
    __getattr__ = lazy_modules(__name__)
