"""What every family of models says about itself."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple, Self

from xcite.errors import XciteError
from xcite.families.layers import Part, Shape
from xcite.preprocessing import Preprocessing


class Published(NamedTuple):
    """One published weight file.

    Attributes:
        name: what a recipe or a command calls it.
        architecture: key of `xcite.variants.ARCHITECTURES`.
        resolution: side of the square evaluation picture in pixels.
        top1: published ImageNet-1k top-1 in percent.
    """

    name: str
    architecture: str
    resolution: int
    distilled: bool
    top1: float


class Family(ABC):
    """A family is the class, one of its architectures an instance: a frozen dataclass.

    All that a model's shapes, initial weights, cost and memory depend on is said once, by `parts`.

    Attributes:
        kind: the family in stored descriptions.
        title: the family's name in messages; ``with_article`` is what one of its models is called.
        head: beginning of the classifier's names.
        roots: expression of the first pieces of the tensors' names.
        first_convolution: the weight that sees the picture; its name tells the family.
        unreadable: fields that no tensor shows although published models differ in them.
        answering: those of them that change the outputs of the same weights.
        added_later: fields that descriptions from before they existed do not have; None is usual.
        preprocessing: of the published weights' evaluation, where a file does not say.
        has_attention_maps: whether the engines can show where the model looks.
        forward_order: first pieces of the parts' names as data pass through them, where the
            reference's order is another one.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    with_article: ClassVar[str]
    head: ClassVar[str]
    roots: ClassVar[str]
    first_convolution: ClassVar[str]
    unreadable: ClassVar[tuple[str, ...]] = ()
    answering: ClassVar[tuple[str, ...]] = ()
    added_later: ClassVar[tuple[str, ...]] = ()
    preprocessing: ClassVar[Preprocessing] = Preprocessing()
    has_attention_maps: ClassVar[bool] = False
    forward_order: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def parts(self, form: str = "usual") -> Iterator[Part]:
        """The one walk over the model, in the order of the reference's state.

        Args:
            form: of attention, "usual" or "covariance"; it changes what is computed, no tensor.
        """

    @classmethod
    def owns(cls, name: str) -> bool:
        """Whether a canonical name is one of the family's, in a model of any size."""
        return re.fullmatch(cls.roots, name.partition(".")[0]) is not None

    @classmethod
    @abstractmethod
    def read(cls, named: Mapping[str, Shape]) -> Self:
        """The architecture that canonical tensors of these shapes belong to.

        Raises:
            KeyError: a tensor that decides is missing or misshapen.
            XciteError: no architecture has such shapes.
        """

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels from one cell of the last grid to the next."""

    @property
    @abstractmethod
    def num_features(self) -> int:
        """Numbers a picture that the classifier sees, and a model without one gives."""

    @abstractmethod
    def structure(self) -> tuple[object, ...]:
        """What models of the same variant share: all but channels, classes, training's fields."""

    def same_tensors(self, other: "Family") -> bool:
        """Whether both have tensors of the same shapes, but for channels and classes."""
        return self.kind == other.kind and self.structure() == other.structure()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the last grid, of a picture of that many pixels."""
        return -(-height // self.stride), -(-width // self.stride)

    def fields(self) -> dict[str, Any]:
        """Every field for a stored description, without those that older versions lack and that
        have their usual value.
        """
        told: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {k: v for k, v in told.items() if k not in self.added_later or v is not None}

    def drop_paths(self) -> tuple[int, float]:
        """How many blocks drop residual branches, and with what probability."""
        return 0, 0.0

    def without_dropout(self) -> Self:
        """The same model without any random dropping of its own."""
        return self

    def in_words(self, height: int, width: int) -> str:
        """What a plan adds to the model's name, for pictures of that size in pixels."""
        return ""

    def layer_groups(self) -> dict[str, str]:
        """Canonical tensor to the part it belongs to, as data pass through them."""
        parts = list(self.parts())
        if self.forward_order:
            parts.sort(key=lambda part: self.forward_order.index(part.name.split(".")[0]))
        return {name: p.name for p in parts for layer in p.layers for name in layer.tensors}


def check_sizes(architecture: Family, limits: Mapping[str, tuple[float, float]]) -> None:
    """Refuse sizes that no model reaches: a walk over a billion layers fills the memory.

    Args:
        limits: field to its least and largest value.

    Raises:
        XciteError: naming the field.
    """
    for name, (least, most) in limits.items():
        value = getattr(architecture, name)
        if not least <= value <= most:
            raise XciteError(f"{name} is {value}; it must be from {least} to {most}")


def shape_of(named: Mapping[str, Shape], name: str, dimensions: int) -> Shape:
    """The shape of a tensor that must be there.

    Raises:
        KeyError: it is missing, empty or of another number of dimensions.
    """
    shape = named.get(name, ())
    if len(shape) != dimensions or 0 in shape:
        raise KeyError(name)
    return shape
