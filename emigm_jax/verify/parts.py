"""All that is verified: a table of named parts with what is usual for each.

Limits in float32 are those of the tests on CPUs: 1e-4 where one network call is compared, 1e-3 of
whole images; CPUs measure 1e-6 and 1e-5. Those in bfloat16 are about four times what a CPU
measures. Accelerators approximate logarithms and exponentials in other ways: there the limits of
float32 are ten times as wide, until somebody has measured.
"""

import jax

from emigm_jax.verify import attention, kernels, meshes, official, seeds
from emigm_jax.verify.part import Limits, Part

_PRECISION = (
    'float32 products are not exact: look for XLA_FLAGS and for a jaxlib of another platform'
)
_SEEDS = 'seeds mean other images here: look for a jax or numpy of another version'
_KERNEL = 'a kernel is wrong here and was not used: report it; --config.model.kernels=xla is safe'
_SHARES = 'devices do not share work as they should: train on one, and report it with this table'


def _float32(limit: float) -> Limits:
    """Anywhere, and wider on accelerators."""
    return {'float32': limit, ('tpu', 'float32'): 10 * limit, ('gpu', 'float32'): 10 * limit}


def _usual(float32: float, bfloat16: float) -> Limits:
    return {**_float32(float32), 'bfloat16': bfloat16}


_EXACT: Limits = {'float32': 0.0}  # no matter of precision
# Sums of an accelerator may come in any order: XLA promises the same bits for TPUs, and CPUs give
# them.
_SAME_BITS: Limits = {'float32': 0.0, ('gpu', 'float32'): None}

# One rounding may choose another code, and all later ones follow it: no codes in bfloat16.
PARTS = (
    Part('official: trunk', official.trunk, _usual(1e-4, 0.1), _PRECISION),
    Part('official: diffusion head', official.head, _usual(1e-4, 0.08), _PRECISION),
    Part('official: loss', official.loss, _usual(1e-4, 0.015), _PRECISION),
    Part('official: solvers', official.solver, _usual(1e-4, 0.015), _PRECISION),
    Part('official: whole images', official.sample, _usual(1e-3, 0.03), _PRECISION),
    Part('MaskGIT: logits', official.maskgit_logits, _usual(1e-4, 0.12), _PRECISION),
    Part('MaskGIT: codes', official.maskgit_codes, _EXACT, _PRECISION),
    Part('Halton order', official.halton, _EXACT, _SEEDS),
    Part('seeds: integers', seeds.integers, _EXACT, _SEEDS),
    Part('seeds: normal numbers', seeds.normal, _float32(1e-5), _SEEDS),
    Part('attention', attention.plain, _usual(1e-5, 0.015), 'attention is not softmax: report it'),
    Part(
        'attention with dropout',
        attention.dropped,
        _usual(1e-5, 0.015),
        'attention drops other weights: report it with this table',
    ),
    Part('kernel: attention', kernels.attention, _usual(1e-5, 0.03), _KERNEL),
    Part('kernel: self-attention', kernels.half_attention, _usual(1e-5, 0.03), _KERNEL),
    Part('kernel: MLP', kernels.half_mlp, _usual(1e-5, 0.03), _KERNEL),
    Part("kernel: the head's block", kernels.residual, _usual(1e-5, 0.03), _KERNEL),
    Part('images: one device, all', meshes.images, _usual(1e-4, 0.05), _SHARES),
)


def parts() -> list[Part]:
    """`PARTS`, and a training step on the meshes that the devices of all processes allow."""
    step, shapes = meshes.Steps(), meshes.shapes(jax.device_count())
    found = list(PARTS)
    for sizes in shapes:
        # The last mesh has the most axes at once: in bfloat16 it stands for the others.
        usual = _usual(1e-4, 0.25) if sizes is shapes[-1] else _float32(1e-4)
        check = lambda dtype, sizes=sizes: step.on(sizes, dtype)
        found.append(Part(f'step: {meshes.title(sizes)}', check, usual, _SHARES))
    if jax.device_count() == 1:
        found.pop()  # against itself
    twice = lambda dtype: step.twice(shapes[-1], dtype)
    remedy = 'the same step gives other bits the second time: look for failing memory'
    return [*found, Part('step: same bits twice', twice, _SAME_BITS, remedy)]
