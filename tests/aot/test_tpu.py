"""Programs that a TPU's own compiler makes, for TPUs that are not there."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from emigm_jax.aot import chips, program, report, search
from emigm_jax.config import nested, recipes
from emigm_jax.errors import UserError
from emigm_jax.models.config import ModelConfig
from emigm_jax.models.diffusion_head import DiffusionHead
from emigm_jax.nn import attention, functional
from emigm_jax.parallel import sharding
from emigm_jax.parallel.sharding import MeshConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec('libtpu') is None, reason='libtpu is not here: emigm_jax[aot]'
    ),
]


def tiny():
    return nested.resolve(recipes.recipe('emigm', 256, 'size=xs,tiny'))


@pytest.mark.parametrize(
    ('name', 'slices', 'sizes'),
    [
        ('v6e:8x8', 1, (4, 16, 1)),
        ('v5e:8x8', 1, (4, 16, 1)),
        ('v4:2x2x4', 1, (2, 4, 2)),
        ('v5e:4x4', 2, (1, 16, 1)),
        ('v6e:4x4', 2, (4, 2, 2)),
    ],
)
def test_meshes_of_tpus(name, slices, sizes):
    """Axes of the torus may be split; slices stay apart."""
    topology = chips.topology(name, slices)
    mesh = sharding.make_mesh(MeshConfig(slices, *sizes), program.devices(topology))
    assert mesh.devices.shape == (slices, *sizes)
    indices = [{getattr(d, 'slice_index', 0) for d in part.flat} for part in mesh.devices]
    assert indices == [{i} for i in range(slices)]


def test_slices_that_are_there_must_be_named():
    devices = program.devices(chips.topology('v5e:2x2', 2))
    with pytest.raises(UserError, match=r'mesh\.slices=2'):
        sharding.make_mesh(MeshConfig(), devices)


def test_compiling_for_a_tpu():
    topology = chips.topology('v5e:2x2')
    config = dataclasses.replace(tiny(), mesh=MeshConfig(data=1, fsdp=4))
    attempts = list(search.search(config, topology, program.devices(topology), lambda text: None))
    (attempt,) = attempts
    values = report.figures(attempt.compiled, topology)
    assert 0 < values['total_bytes'] < values['hbm_bytes']
    assert values['state_times_devices'] <= 1.05
    # Loops multiplied out: what the formula says, not the compiler's one body.
    ratio = values['products'] * 4 / values['model_flops_of_all_devices']
    assert 0.95 < ratio < 1.3  # kernels work hidden units out again backwards
    assert '\n'.join(report.lines(values))


def test_kernels_are_compiled_for_a_tpu():
    """They are in the program, their work is counted, and with them it moves less."""
    mesh = sharding.make_mesh(MeshConfig(), program.devices(chips.topology('v6e:1x1')))
    place = NamedSharding(mesh, P())
    of = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    def compiled(kernels):
        model = ModelConfig(
            *(16, 'mae', 'diffusion', 16, 0, 10),
            width=448,
            head_width=512,
            head_depth=1,
            dtype='bfloat16',
            kernels=kernels,
        )
        build = lambda rngs: DiffusionHead(model, DiffusionHead.embedding(model, rngs), rngs)
        network, softmax = functional.functional(build), attention.Softmax(8, 0.1, kernels)

        def loss(params, q, *args):
            mixed = attention.attend(q, q, q, softmax, key=jax.random.key(0))
            out = network.bind(params)(*args)
            return jnp.sum(jnp.sin(mixed.astype(jnp.float32))) + jnp.sum(jnp.square(out))

        params = jax.tree.map(lambda a: of(*a.shape, dtype=a.dtype), network.shapes())
        rows = of(4, 16, 512, 16), of(4, 16, 512, 512), of(16, 512, 512)
        gradient = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4)))
        with jax.set_mesh(mesh):
            lowered = gradient.lower(params, of(16, 320, 448, dtype=jnp.bfloat16), *rows)
        return program._compiled(lowered, {}, 1.0, mesh).costs

    auto, xla = compiled('auto'), compiled('xla')
    assert auto.traffic < 0.8 * xla.traffic
    # The backward pass works logits out again, either way.
    assert auto.products == pytest.approx(xla.products, rel=0.1)


def test_two_slices_of_a_tpu():
    """Weights are gathered within a slice; only sums of gradients go between them."""
    topology = chips.topology('v5e:2x2', 2)
    config = dataclasses.replace(tiny(), mesh=MeshConfig(slices=2, data=1, fsdp=4))
    (attempt,) = search.search(config, topology, program.devices(topology), lambda text: None)
    rows = attempt.compiled.collectives
    gathered = {row.between_slices: row.payload for row in rows if row.kind == 'all-gather'}
    summed = sum(row.payload for row in rows if row.kind == 'all-reduce' and row.between_slices)
    assert all(
        row.devices == (2 if row.between_slices else 4)
        for row in rows
        if row.kind in ('all-gather', 'reduce-scatter')
    )
    assert gathered.get(True, 0.0) < 0.01 * gathered[False]
    parameters, whole = attempt.compiled.state['parameters']
    assert parameters == pytest.approx(whole / 4, rel=0.05)
    # At least a device's quarter of the gradients, but not all; those of embeddings go whole.
    assert parameters <= summed < whole


def test_memory_is_what_the_compiler_counts():
    """Arguments, results and temporaries of a program whose sizes are known; and its refusal."""
    (device,) = program.devices(chips.topology('v5e:1x1'))
    mesh = jax.sharding.Mesh([device], ('x',))

    def work(x):
        y = jax.lax.optimization_barrier(jnp.sin(x))
        z = jax.lax.optimization_barrier(jnp.roll(y, 5, 0))
        return jnp.sum(z * y[::-1])

    def compiled(gib):
        x = jax.ShapeDtypeStruct(
            (gib * 2**18, 1024), jnp.float32, sharding=NamedSharding(mesh, P())
        )
        return program._compiled(jax.jit(work).lower(x), {}, 1.0, mesh)

    made = compiled(1)
    assert made.arguments == pytest.approx(chips.GIB, rel=1e-3)
    assert made.temporary == pytest.approx(3 * chips.GIB, rel=1e-2)
    with pytest.raises(program.TooLarge) as refused:
        compiled(4)
    assert refused.value.needed == pytest.approx(16 * chips.GIB, rel=1e-2)


def test_a_program_that_is_accepted_fits():
    """The compiler's size of its temporaries, 16.6 GiB here, is beyond the memory there is."""
    chip = chips.topology('v5e:1x1')
    mesh = jax.sharding.Mesh(program.devices(chip), ('x',))

    def loss(up, down, x):
        def body(x, kernels):
            up, down = kernels
            return x + jax.nn.gelu(x @ up, approximate=False) @ down, None

        return jnp.sum(jax.lax.scan(jax.checkpoint(body), x, (up, down))[0] ** 2)

    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P()))
        for shape in ((8, 1024, 4096), (8, 4096, 1024), (2**18, 1024))
    ]
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes)
    made = program._compiled(lowered, {}, 1.0, mesh)
    assert 12 * chips.GIB < made.total < chip.chip.hbm
