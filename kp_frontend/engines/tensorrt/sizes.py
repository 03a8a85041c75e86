"""Image sizes that a TensorRT engine is built for."""

from __future__ import annotations

from dataclasses import dataclass

from kp_frontend.errors import InputError
from kp_frontend.model_file import ModelMetadata

Size = tuple[int, int]
_SMALLEST, _USUAL, _LARGEST = (64, 64), (480, 640), (1088, 1920)


@dataclass(frozen=True)
class Sizes:
    """Height and width in pixels: the smallest, the one to be fastest at, the largest; all the same = fixed."""

    smallest: Size
    usual: Size
    largest: Size

    def __post_init__(self) -> None:
        for name in ("smallest", "usual", "largest"):  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        axes = zip(self.smallest, self.usual, self.largest)
        if not all(0 < low <= usual <= high for low, usual, high in axes):
            raise InputError(f"expected sizes that grow from smallest to usual to largest, got {self}")

    def __str__(self) -> str:
        if self.fixed:
            return as_text(self.usual)
        return f"{as_text(self.smallest)} to {as_text(self.largest)}, fastest at {as_text(self.usual)}"

    @property
    def fixed(self) -> bool:
        """Whether there is only one."""
        return self.smallest == self.largest

    def hold(self, size: Size) -> bool:
        """Whether images of `size` can be run; (0, 0), any size, where the engine is not fixed."""
        if size == (0, 0):
            return not self.fixed
        return all(low <= wanted <= high for low, wanted, high in zip(self.smallest, size, self.largest))


def as_text(size: Size) -> str:
    """Width × height, as people say it."""
    return f"{size[1]}×{size[0]}"


def choose_sizes(
    metadata: ModelMetadata, size: Size = (0, 0), smallest: Size | None = None, largest: Size | None = None
) -> Sizes:
    """Sizes to build for, each side rounded up to what the network takes.

    size: of the images; (0, 0) = not known: any from 64×64 to 1920×1088.  smallest, largest: where they vary.
    Raises InputError where the file is of another fixed size, or the sizes are in no order.
    """
    only = (metadata.height, metadata.width)
    given = [metadata.padded(*value) for value in (size, smallest, largest) if value and value != (0, 0)]
    if metadata.height:
        if any(value != only for value in given):
            raise InputError(f"the model was exported for {as_text(only)} only, not for {as_text(given[0])}; export it "
                             "for that size, or with dynamic size")
        return Sizes(only, only, only)
    known = size != (0, 0)
    low, high = smallest or (size if known else _SMALLEST), largest or (size if known else _LARGEST)
    low, high = metadata.padded(*low), metadata.padded(*high)
    usual = size if known else (min(max(_USUAL[0], low[0]), high[0]), min(max(_USUAL[1], low[1]), high[1]))
    return Sizes(low, metadata.padded(*usual), high)
