"""The same training step and the same images, however many devices share the work."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any, final

import jax
import numpy as np

from emigm_jax.config.settings import Config, LossConfig, SamplingConfig, TrainingConfig
from emigm_jax.core.masking import MaskingConfig
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.core.solvers import SolverConfig
from emigm_jax.data.interface import Batch
from emigm_jax.parallel import processes, sharding
from emigm_jax.sampling import steps
from emigm_jax.sampling.sampler import Sampler
from emigm_jax.training import program
from emigm_jax.verify.official import of_emigm
from emigm_jax.verify.part import Finding, differing, relative

AXES = ('data', 'fsdp', 'tensor')
SMALLEST = 1e-3  # of the largest gradient: what is smaller is compared with this
# Compilers of CPUs take a minute to make a step faster that runs a few times.
_UNPOLISHED = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
if jax.__version_info__ < (0, 11):  # later ones may not know it; half of the minute is here
    _UNPOLISHED['xla_cpu_use_fusion_emitters'] = False


def shapes(devices: int) -> list[dict[str, int]]:
    """Meshes of so many devices: each axis alone, then as many axes at once as there can be.

    An axis has two devices or more. Of the ways to divide devices among axes the most even one.
    """
    most = max((count for count in (1, 2, 3) if _even(devices, count)), default=0)
    return (
        [
            dict(zip(axes, _even(devices, count), strict=True))
            for count in sorted({1, most})
            for axes in itertools.combinations(AXES, count)
        ]
        if most
        else [{'data': 1}]
    )


def _even(devices, count):
    """`count` factors of 2 and more of `devices`, the largest as small as can be; () if none."""
    factors = (f for f in range(2, devices + 1) if devices % f == 0)
    choices = itertools.combinations_with_replacement(factors, count)
    return min((c for c in choices if math.prod(c) == devices), key=max, default=())


def title(sizes: dict[str, int]) -> str:
    """As in 'data 2 x tensor 4'."""
    return ' x '.join(f'{name} {size}' for name, size in sizes.items())


@final
class Steps:
    """One training step, dropout of attention included, on one device and on meshes of all.

    Weights are recorded ones: in fresh ones most gradients are 0. Each mesh is compiled once.
    """

    def __init__(self):
        self._results = {}  # (title, dtype): what the step gives, run again and again

    def on(self, sizes: dict[str, int], dtype: str) -> Finding:
        """Loss and gradients on a mesh of all devices of all processes against one device's."""
        expected_loss, expected = next(self._of({}, dtype, jax.local_devices()[:1]))
        loss, gradients = next(self._of(sizes, dtype, jax.devices()))
        off = abs(loss - expected_loss) / abs(expected_loss)
        return Finding(max(off, _apart(gradients, expected)), 'loss and gradients, of their size')

    def twice(self, sizes: dict[str, int], dtype: str) -> Finding:
        """The same step on the same input, two times: numbers of it that are not the same."""
        results = self._of(sizes, dtype, jax.devices())
        (loss, gradients), (again, others) = next(results), next(results)
        trees = zip(jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True)
        worst = max(differing(a, b) for a, b in trees)
        return Finding(max(worst, float(loss != again)), 'numbers that differ')

    def _of(self, sizes, dtype, devices) -> Iterator[tuple[float, Any]]:
        key = title(sizes), dtype
        if key not in self._results:
            self._results[key] = _results({'data': 1, **sizes}, dtype, devices)
        return self._results[key]


def _results(sizes, dtype, devices):
    """Yields (loss, gradients) of the step from the same state and batch, without an end."""
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes), devices)
    model, params, _ = of_emigm(dtype)
    model = dataclasses.replace(model, projection_dropout=0.0)  # of which the compiler makes much
    config = Config(
        model=model,
        # One group, so that any number of images will do.
        loss=dataclasses.replace(LossConfig(), masking=MaskingConfig(groups=1)),
        training=TrainingConfig(batch_size=_images()),
    )
    built = program.build(config, mesh, 0, 1)
    on_cpu = mesh.devices.flat[0].platform == 'cpu'
    step = sharding.with_mesh(mesh, built.lower().compile(_UNPOLISHED if on_cpu else None))
    if mesh.is_multi_process:
        processes.meet()
    batch, params = _batch(built), jax.tree.map(np.asarray, params)
    rest = jax.device_put((np.int32(0), built.words), sharding.replicated(mesh))
    while True:
        # The state is donated, so each step has its own.
        state = built.begin(jax.device_put(params, sharding.of_state(mesh, params)))
        state, metrics = step(state, batch, *rest)
        # Adam's first moment is the gradient times 1 - beta1. A parameter after the first step
        # tells but its sign, which is up to rounding where it is almost nothing.
        found = metrics['loss'], state['opt'][1][0].mu
        if mesh.is_multi_process:
            found = sharding.gathered(mesh, found)
        loss, moment = jax.tree.map(np.asarray, found)
        yield float(loss), moment


def _images():
    """At least eight, as many on each device."""
    return jax.device_count() * -(-8 // jax.device_count())


def _batch(built):
    images, tokens, channels = built.batch.tokens.shape
    rng = np.random.Generator(np.random.Philox(key=0))
    rows = {
        'labels': rng.integers(10, size=images).astype(np.int32),
        'tokens': rng.standard_normal((images, tokens, channels), np.float32),
    }
    split = sharding.batch_sharding(built.mesh)
    here = sharding.rows_here(split, images)
    held = {name: array[here] for name, array in rows.items()}
    return Batch(**sharding.place_rows(split, here, images, held))


def _apart(gradients, expected):
    """Largest difference of a parameter's gradients, as a part of the largest of them."""
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    off = lambda a, b: np.abs(a - b).max() / max(np.abs(b).max(), SMALLEST * largest)
    return float(np.max(jax.tree.leaves(jax.tree.map(off, gradients, expected))))


def images(dtype: str) -> Finding:
    """Images of seeds on all devices of this process at once against one by one on one of them."""
    model, params, _ = of_emigm(dtype)
    config = SamplingConfig(
        reveal=RevealConfig(steps=2, guidance_from=0.0, guidance_to=0.1),
        solver=SolverConfig(steps=3),
    )
    sampler = Sampler(model, config)
    seeds = np.arange(2 * jax.local_device_count())
    labels = seeds % model.classes
    together = np.asarray(sampler(params, labels, seeds))
    alone = jax.jit(
        lambda params, images: steps.Steps(model, config).generate(sampler.segments, params, images)
    )
    one_by_one = [
        np.asarray(alone(params, sampler.images(labels[i : i + 1], seeds[i : i + 1])))
        for i in range(len(seeds))
    ]
    return Finding(relative(together, np.concatenate(one_by_one)), 'tokens, of their deviation')
