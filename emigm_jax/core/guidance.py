"""Guidance: one prediction, led away from another by a scale (paper Sec. 3.4).

What the other is makes its kind: of the null class (classifier-free, arXiv 2207.12598), or of a
weaker model (autoguidance, arXiv 2406.02507).
"""

from jaxtyping import Array, Float32


def guided(
    prediction: Float32[Array, 'B R F'],
    other: Float32[Array, 'B R F'] | None,
    scale: Float32[Array, ' B'],
) -> Float32[Array, 'B R F']:
    """other + scale (prediction - other), of noise or logits; without other the prediction.

    Args:
      prediction: of the class.
      other: what it is led away from.
      scale: 1 is the prediction itself.
    """
    if other is None:
        return prediction
    return other + scale[:, None, None] * (prediction - other)
