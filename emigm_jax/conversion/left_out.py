"""Tensors of official files that we have no use for: why, and which of them the way back needs."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from emigm_jax.conversion.rules import Tensors

# PyTorch's batch norms count; a strict loader wants the counters back.
_COUNTERS = r'.*\.num_batches_tracked'
COUNTERS = (_COUNTERS, 'count training batches; the averages are fixed')


def split(tensors: Tensors, ignored: Sequence[tuple[str, str]]) -> tuple[Tensors, dict[str, str]]:
    """Tensors that are needed, and {name: why} of those that are not.

    Args:
      tensors: by official name.
      ignored: rows (pattern of whole names, why they are not needed).
    """
    why = lambda name: next((why for rule, why in ignored if re.fullmatch(rule, name)), None)
    reasons = {name: why(name) for name in tensors}
    kept = {name: array for name, array in tensors.items() if reasons[name] is None}
    return kept, {name: reason for name, reason in reasons.items() if reason is not None}


def counters(tensors: Tensors, left_out: dict[str, str]) -> dict[str, int]:
    """The counters among tensors that were left out, for the description of a checkpoint."""
    return {
        name: int(tensors[name])
        for name in left_out
        if re.fullmatch(_COUNTERS, name) and np.shape(tensors[name]) == ()
    }


def counted(description: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of `counters` again: int64, of no rank."""
    counters = description.get('counters', {})
    return {name: np.asarray(count, np.int64) for name, count in counters.items()}
