"""What is known about a residual stream: how it is normalised, and what reads it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reader:
    """A layer that sums over the units of a stream: dimension `dim` of tensor `weight`.

    Attributes:
        weight: the tensor.
        dim: its dimension along the stream.
        bias: the tensor that is added to the sums; None if there is none.
    """

    weight: str
    dim: int
    bias: str | None


@dataclass(frozen=True)
class Norm:
    """A normalisation of a stream, w * x / |x| + b of every vector x, centred before if it is a layer normalisation.

    Attributes:
        scale: the tensor w; None if there is none.
        shift: the tensor b; None if there is none.
        readers: the layers that read what the norm makes.
        centres: whether the mean of the vector is subtracted (LayerNorm) or not (RMSNorm).
    """

    scale: str | None
    shift: str | None
    readers: tuple[Reader, ...]
    centres: bool


@dataclass(frozen=True)
class Stream:
    """A group of units that the network normalises by vectors.

    Attributes:
        norms: how it is normalised, and by what each normalised vector is read.
        is_residual: whether what layers write is added to it.
        bare: whether some layer reads the stream, or a mean-keeping norm of it, so that its mean matters.
        copies: tensors that bear several names: every other name to the one that is used in `norms`.
        obstacle: why what the norms scale cannot be moved into the layers that read it, or the stream cannot be mapped
            by an orthogonal matrix; None if both can be done.
    """

    norms: tuple[Norm, ...]
    is_residual: bool = False
    bare: bool = False
    copies: Mapping[str, str] = field(default_factory=dict)
    obstacle: str | None = None

    @property
    def centred(self) -> bool:
        """Whether some norm subtracts the mean: only maps that keep the mean of every vector then commute with it."""
        return any(norm.centres for norm in self.norms)

    @property
    def affine(self) -> frozenset[str]:
        """The scales and shifts of all norms."""
        return frozenset(name for norm in self.norms for name in (norm.scale, norm.shift) if name is not None)
