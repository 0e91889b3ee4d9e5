"""What training data are: rows read on the host, made into a batch of tokens on the devices."""

import abc
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from emigm_jax.config.settings import DataConfig
from emigm_jax.tokenizers.codec import Codec


class Batch(NamedTuple):
    """What a training step takes.

    The order of the fields is that of the compiled step's arguments, on which its rounding depends.
    """

    labels: jax.Array  # (B,) int32
    tokens: jax.Array  # (B, N, C) float32, or codes (B, N) int32, in raster order


class Dataset(abc.ABC):
    """A labelled set of examples, addressed by index."""

    examples: int
    classes: int
    grid: int  # tokens per side
    channels: int  # C, numbers per token that is a vector; 0: tokens are codes
    codes: int = 0  # V, values of a token that is a code; 0: tokens are vectors
    fingerprint: str  # of what decides content and order; the same on every host
    codec: Codec | None  # turns tokens into pictures; None: nothing at hand does
    params: dict[str, Any]  # weights that `to_batch` needs on the devices; {}: none
    class_names: Sequence[str] = ()  # in label order; (): they have none
    flip: bool = False  # whether every other example is mirrored, by chance
    # What they are read by, with what was left to them filled in; None: as in the config.
    settings: DataConfig | None = None
    remarks: Sequence[str] = ()  # lines that a user should know
    # Settings of the data that do not fit them, and values that would: {dotted name: value}.
    misfits: Mapping[str, int] = types.MappingProxyType({})
    enlarges: bool = False  # whether most pictures are smaller than what is made of them
    # As `read`, for the order `blocks`, which asks for neighbours; None: `read` is as good.
    read_near: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]] | None = None
    one_by_one: bool = False  # whether a row takes so long that each is read by a task of its own

    @abc.abstractmethod
    def read(self, indices: np.ndarray, mirrored: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of `indices` (B,), mirrored where `mirrored` (B,) says so: {name: (B, ...)}.

        Called from several threads; depends on its arguments alone.
        """

    @abc.abstractmethod
    def to_batch(self, params: dict[str, Any], rows: dict[str, jax.Array], key: jax.Array) -> Batch:
        """Rows of `read`, on the devices, as a `Batch`; pure.

        Args:
          params: as in `params`, on every device.
          rows: of `read`.
          key: of whatever is drawn on the way.
        """
