"""What trainer, exporter and kiosk may know of a kind of art, and nothing more.

A *modality* is one kind of art (image style, melody, text, ...) in one file under ``models/modalities``. Everything
else in the project works through the three values named here, so that a new art is one new file:

* ``Signature``: plain data about the graph that ships. It travels in the signed manifest, so that a kiosk can run an
  art it has never heard of from an ONNX file and its manifest alone.
* ``Objective``: one loss over one set of parameters. A modality has a tuple of them, since a GAN trains two losses
  over two parameter sets in turn.
* ``Modality``: builds the network, turns works into lessons, and says which parameters may leave the machine.

Torch is named for type checkers only: a gallery's machine reads signatures without having torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypeGuard, TypeVar, get_args, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor, nn

    from models.perceptual import Perceptual

Work: TypeAlias = npt.NDArray[np.uint8]
"""A decoded work of a medium; for images (H, W, 3) uint8 sRGB."""

Medium = Literal["image", "melody", "text"]
Sampler = Literal["feed-forward"]
Dtype = Literal["uint8", "float32", "int64"]


@dataclass(frozen=True, slots=True)
class Frame:
    """What a network needs around its material, beyond what it is given.

    The exporter puts the frame on and takes it off inside the graph, so that nobody who runs a graph has to know of it.

    Attributes:
        multiple: height and width must be multiples of this many pixels.
        margin: pixels by which the edge is repeated outwards on every side.
        used: pixels on every side that the network uses up: its work is smaller by them than what it is given.
    """

    multiple: int
    margin: int
    used: int = 0


T = TypeVar("T")


class SignatureError(ValueError):
    """A signature read from a manifest is not one this version understands."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of one graph input or output; ``None`` marks a free dimension."""

    name: str
    dtype: Dtype
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """How a compiled graph of a modality is fed and read.

    Attributes:
        medium: what a work is made of; chooses the codec.
        sampler: how the graph becomes a work; chooses the sampler.
        content: the graph input that takes the visitor's or artist's material.
        code: the graph input that takes the private style code (absent from a folded graph).
        output: the graph output.
    """

    medium: Medium
    sampler: Sampler
    content: TensorSpec
    code: TensorSpec
    output: TensorSpec

    def to_plain(self) -> dict[str, object]:
        """The signature as JSON-ready plain data."""
        return {
            "medium": self.medium,
            "sampler": self.sampler,
            **{
                role: {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
                for role, spec in (("content", self.content), ("code", self.code), ("output", self.output))
            },
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> Signature:
        """Read a signature from a manifest.

        Raises:
            SignatureError: an unknown medium, sampler, field or shape; this version must not guess.
        """
        expected = {"medium", "sampler", "content", "code", "output"}
        if set(plain) != expected:
            raise SignatureError(f"a signature has exactly the fields {sorted(expected)}")
        return cls(
            medium=_one_of(get_args(Medium), plain["medium"]),
            sampler=_one_of(get_args(Sampler), plain["sampler"]),
            content=_tensor_spec(plain["content"]),
            code=_tensor_spec(plain["code"]),
            output=_tensor_spec(plain["output"]),
        )


def _one_of(known: tuple[T, ...], value: object) -> T:
    for choice in known:
        if choice == value:
            return choice
    raise SignatureError(f"unknown to this version: {value!r}")


def _tensor_spec(plain: object) -> TensorSpec:
    if not isinstance(plain, Mapping) or set(plain) != {"name", "dtype", "shape"}:
        raise SignatureError("a tensor needs exactly name, dtype and shape")
    name, dtype, shape = plain["name"], plain["dtype"], plain["shape"]
    if not isinstance(name, str) or not name.isidentifier() or len(name) > 64:
        raise SignatureError(f"not a tensor name: {name!r}")
    if dtype not in get_args(Dtype):
        raise SignatureError(f"unknown element type: {dtype!r}")
    if not isinstance(shape, list) or not all(d is None or (_is_whole(d) and 0 < d < 2**20) for d in shape):
        raise SignatureError(f"not a shape: {shape!r}")
    return TensorSpec(name, dtype, tuple(shape))


def _is_whole(value: object) -> TypeGuard[int]:
    """Whether JSON says a whole number; ``true`` is an ``int`` to Python only."""
    return isinstance(value, int) and not isinstance(value, bool)


Net = TypeVar("Net", bound="nn.Module")
NetIn_contra = TypeVar("NetIn_contra", bound="nn.Module", contravariant=True)
Batch = TypeVar("Batch")
BatchIn_contra = TypeVar("BatchIn_contra", contravariant=True)
BatchOut_co = TypeVar("BatchOut_co", covariant=True)


class Lessons(Protocol[BatchOut_co]):
    """Everything a network learns from on one machine: an endless, seeded supply of batches."""

    def batch(self, step: int) -> BatchOut_co:
        """The batch of one step; the same step gives the same batch."""
        ...

    def batch_of(self, code: int, step: int) -> BatchOut_co:
        """A batch about one code alone, whatever the emphasis; the same code and step give the same batch."""
        ...

    def exam(self) -> Iterable[BatchOut_co]:
        """The fixed batches that ``Modality.score`` is taken on; their material is kept out of the other batches."""
        ...

    def distance(self, code: int, works: Sequence[Work]) -> float:
        """Mean style distance of finished works to those a code learns from: ``Score.style`` of works already made."""
        ...


class Objective(Protocol[NetIn_contra, BatchIn_contra]):
    """One loss over one set of parameters."""

    @property
    def name(self) -> str: ...

    @property
    def gradient_limit(self) -> float:
        """Greatest norm of a step's gradients, all together; longer ones are shortened to it."""
        ...

    def rate(self, parameter: str) -> float:
        """The learning rate of the parameter of that name; 0 where this objective leaves it alone."""
        ...

    def loss(self, net: NetIn_contra, batch: BatchIn_contra) -> Tensor:
        """A scalar to be made smaller."""
        ...


@runtime_checkable
class Modality(Protocol[Net, Batch]):
    """One kind of art: its network, its lessons, what is shared, its score."""

    @property
    def name(self) -> str:
        """The registry's key; it travels in manifests and style files."""
        ...

    @property
    def signature(self) -> Signature: ...

    @property
    def frame(self) -> Frame:
        """What the exporter puts around the content of ``graph``."""
        ...

    @property
    def objectives(self) -> tuple[Objective[Net, Batch], ...]: ...

    def build(self, seed: int, codes: int = 1) -> Net:
        """A fresh network with random weights that holds that many private codes."""
        ...

    @property
    def backbones(self) -> tuple[str, ...]:
        """Names of the frozen networks its lessons need (``export/backbones.py`` loads them)."""
        ...

    def lessons(
        self,
        targets: Sequence[Sequence[Work]],
        material: Sequence[Work],
        backbones: Mapping[str, Perceptual],
        seed: int,
        emphasis: int | None = None,
    ) -> Lessons[Batch]:
        """Turn private works into lessons.

        Args:
            targets: for each code of the network, the works it shall learn from. They become target statistics at
                once; they are never an input of the network.
            material: public photos (or melodies, texts) the network is fed with.
            backbones: the frozen networks named by ``backbones``.
            seed: of every random choice.
            emphasis: the code most batches, and the whole exam, are about; the others are rehearsed so that the body
                does not forget them. None treats all codes alike.
        """
        ...

    def graph(self, net: Net) -> nn.Module:
        """The part of the network that ships, taking ``signature``'s inputs, framed: the *exact* graph."""
        ...

    def codes(self, net: Net) -> npt.NDArray[np.float32]:
        """A copy of the private codes the network holds: (N, D) float32."""
        ...

    def set_codes_inplace(self, net: Net, codes: npt.NDArray[np.float32]) -> None:
        """Replace all private codes, (N, D) float32, and forget what was observed under the old ones."""
        ...

    def suit_inplace(self, net: Net, row: int, batches: Iterable[Batch]) -> None:
        """Bring a code that was borrowed from another artist nearer to its own works, as far as that needs no training.

        An art that knows no such way leaves the code as it is.

        Args:
            net: holds the code.
            row: the code's number.
            batches: lessons; those of other codes count for nothing.
        """
        ...

    def constrain_inplace(self, net: Net) -> None:
        """Bring the parameters back into the set the architecture allows; called after every training step.

        The set must be linear, or averaging two machines' bodies would leave it.
        """
        ...

    def is_shared(self, parameter: str) -> bool:
        """Whether the tensor of that name belongs to the body, which may leave the machine."""
        ...

    def score(self, net: Net, batches: Iterable[Batch]) -> Score:
        """How well the network does on the batches."""
        ...


@dataclass(frozen=True, slots=True)
class Score:
    """A verdict in two numbers that every art has.

    Attributes:
        style: distance to the artist's works, 0 is perfect, about 1 is unrelated.
        content: how much of the material is still recognisable, 1 is all of it.
    """

    style: float
    content: float
