"""What comes of a conversion in either direction, whatever the kind of weights."""

import collections
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from emigm_jax.conversion.options import Kind
from emigm_jax.errors import printable
from emigm_jax.io import paths
from emigm_jax.io.formats import data_files
from emigm_jax.nn import functional


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Official weights as one of our checkpoints."""

    kind: Kind
    origin: str  # the source, as messages call it
    title: str  # what it is
    details: str  # what the numbers are, and what else there is to say in a line
    params: dict[str, Any]  # nested dict of float32 arrays
    facts: dict[str, Any]  # JSON-like, for the checkpoint's description
    writer: Callable[[os.PathLike | str, dict, dict], None]  # (target, params, facts)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)  # {official name: why}
    notes: tuple[str, ...] = ()  # what the user should know

    @property
    def parameters(self) -> int:
        """How many numbers the weights are."""
        return functional.parameter_count(self.params)

    def lines(self) -> list[str]:
        """What to tell the user."""
        reasons = collections.Counter(self.left_out.values())
        lines = [
            f'{self.origin}: {self.title}, {self.parameters:,} {self.details}',
            *self.notes,
            *(f'left out: {count} tensors {why}' for why, count in sorted(reasons.items())),
        ]
        return list(map(printable, lines))

    def save(self, target: os.PathLike | str) -> None:
        """Writes the checkpoint, whole or not at all; raises UserError if it cannot be written."""
        self.writer(target, self.params, self.facts)


@dataclasses.dataclass(frozen=True)
class Export:
    """One of our checkpoints under official names."""

    origin: str  # the checkpoint
    tensors: dict[str, np.ndarray]  # by official name
    weights: str = ''  # which of the checkpoint's, if it may hold several
    notes: tuple[str, ...] = ()  # what the user should know

    def lines(self) -> list[str]:
        """What to tell the user."""
        weights = f', weights {self.weights}' if self.weights else ''
        lines = [*self.notes, f'{self.origin}: {len(self.tensors)} tensors{weights}']
        return list(map(printable, lines))

    def save(self, target: os.PathLike | str) -> None:
        """Writes a safetensors file, whole or not at all; raises UserError if it cannot."""
        data_files.write_safetensors(paths.absolute(target), self.tensors)
