"""What one device, as JAX counts them, can do at most: dense matrix products per second.

Origins: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x} (a v7x is two devices); the data
sheets of NVIDIA, without sparsity.
"""

import re
from typing import NamedTuple


class Peak(NamedTuple):
    """FLOP/s, 2 per multiply-add."""

    bfloat16: float
    float32: float  # by default: factors are rounded to bfloat16 on TPUs, to TF32 on GPUs


def _tpu(flops):
    return Peak(flops, flops)


# What the device calls itself (jax.Device.device_kind); the first that matches holds.
PEAKS = {
    'TPU v4': _tpu(275e12),
    'TPU v5 ?(lite|e)': _tpu(197e12),
    'TPU v5': _tpu(459e12),  # v5p
    'TPU v6 ?(lite|e)': _tpu(918e12),
    'TPU ?(7x|v7x)': _tpu(2307e12 / 2),
    'B200': Peak(2250e12, 1125e12),
    'H100 PCIe': Peak(756e12, 378e12),
    'H100 NVL': Peak(835.5e12, 417.5e12),
    r'H[12]00\b': Peak(989e12, 494.5e12),
    r'A100\b': Peak(312e12, 156e12),
    'L40S': Peak(362e12, 183e12),
    r'\bL4\b': Peak(121e12, 60.5e12),
    'A10G': Peak(70e12, 35e12),
    'RTX 4090$': Peak(165e12, 82.5e12),
    'RTX 3090$': Peak(71e12, 35.5e12),
}


def peak(kind: str, dtype: str) -> float | None:
    """Of a kind of device and the dtype of products; None where nothing is stated."""
    for pattern, found in PEAKS.items():
        if re.search(pattern, kind):
            return found._asdict()[dtype]
    return None
