"""`emigm benchmark`: speed, FLOPs, memory and compile time of training, sampling and data."""

import json
import statistics
import time

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser


def run(argv):
    """Runs the command."""
    parser = Parser(
        'benchmark',
        'Measures a config with random weights and data. FLOPs are counted from shapes (matrix '
        'products,\n2 per multiply-add); "of matmul peak" compares with a large matrix product '
        'timed in the same run.',
        'emigm benchmark train --config configs/imagenet256.py:size=xs --batch-size 8\n'
        '  emigm benchmark data --config configs/imagenet256.py:size=xs --config.data.name=latents '
        '--config.data.path=CACHE',
    )
    parser.add_argument('what', choices=('train', 'sample', 'data'))
    shared.add_config(parser)
    for flag, default, text in (
        ('--batch-size', None, "images per step (8 per device; data: the config's)"),
        ('--repeats', None, 'timed steps, whose median counts (3); data: batches (50)'),
        ('--train-steps', 0, 'data: also time so many real steps, and how long they wait'),
    ):
        parser.add_argument(flag, type=int, default=default, help=text)
    parser.add_argument('--json', metavar='FILE', help='write the figures there, too')
    arguments, config = shared.parse_with_config(parser, argv)
    data = arguments.what == 'data'
    if arguments.train_steps and not data:
        parser.error('--train-steps goes with data')
    if arguments.batch_size is None:
        arguments.batch_size = config.training.batch_size if data else 8 * _devices()
    if arguments.repeats is None:
        arguments.repeats = 50 if data else 3
    for name, low in (('batch_size', 1), ('repeats', 1), ('train_steps', 0)):
        if getattr(arguments, name) < low:
            parser.error(f'--{name.replace("_", "-")} must be at least {low}')

    if data:
        from emigm_jax.cli import benchmark_data

        result = benchmark_data.measure(
            config, arguments.batch_size, arguments.repeats, arguments.train_steps
        )
    else:
        build = {'train': _train, 'sample': _sample}[arguments.what]
        result = _measure(*build(config, arguments.batch_size), arguments.repeats)
        result = _figures(result, config, arguments)
    for key, value in result.items():
        print(f'{key:28} {value:.4g}' if isinstance(value, float) else f'{key:28} {value}')
    if arguments.json:
        from emigm_jax import files

        files.write_text(arguments.json, json.dumps(result, indent=2) + '\n')
    return 0


def train_program(config, batch):
    """(`program.Program` of a batch size on all devices, forward + backward FLOPs per image)."""
    import dataclasses

    from emigm_jax import flops, sharding
    from emigm_jax.core import masking
    from emigm_jax.training import program, step

    training = dataclasses.replace(config.training, batch_size=batch)
    config = dataclasses.replace(config, training=training)
    built = program.build(config, sharding.make_mesh(config.mesh), 0, 1)
    groups = step.layout(config.loss, batch, config.training.accumulate)
    budgets = masking.budgets(config.loss.masking, config.model.tokens, groups)
    return built, 3 * flops.train_image(config.model, budgets, config.loss.copies)


def _train(config, batch):
    """(lowering, the program's arguments, next arguments from a result, FLOPs per image)."""
    import jax
    import numpy as np

    built, count = train_program(config, batch)
    rng = np.random.default_rng(0)
    data = {
        'tokens': rng.standard_normal(built.batch['tokens'].shape, np.float32),
        'labels': rng.integers(config.model.classes, size=batch).astype(np.int32),
    }
    data = jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), data, built.batch)
    first, zero = built.create(), np.int32(0)
    return built.lower, (first, data, zero), lambda out: (out[0], data, zero), count


def _sample(config, batch):
    import functools

    import jax
    import numpy as np

    from emigm_jax.models import emigm
    from emigm_jax.sampling import Sampler

    params = jax.jit(emigm.network(config.model).init)(jax.random.key(0))
    sampler = Sampler(config.model, config.sampling)
    labels = np.arange(batch) % config.model.classes
    run, arguments = sampler.prepared(params, labels, np.arange(batch))
    lower = functools.partial(run.lower, *arguments)
    return lower, arguments, lambda _: arguments, sampler.flops


def _measure(lower, arguments, following, count, repeats):
    """Compiles, runs once to warm up, then times `repeats` calls."""
    import jax

    start = time.perf_counter()
    compiled = lower().compile()
    compile_seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    parts = (memory.argument_size_in_bytes, memory.temp_size_in_bytes,
             memory.output_size_in_bytes, -memory.alias_size_in_bytes)  # fmt: skip
    peak, seconds = _matmul_peak(), []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - start)
        arguments = following(out)
    return {
        'seconds_per_step': statistics.median(seconds[1:]),
        'flops_per_image': float(count),
        'program_memory_gb': sum(parts) / 1e9,
        'compile_seconds': compile_seconds,
        'matmul_peak_tflops': peak / 1e12,
    }


def _devices():
    import jax

    return jax.device_count()


def _figures(result, config, arguments):
    import jax

    rate = arguments.batch_size / result['seconds_per_step']
    achieved = rate * result['flops_per_image'] / 1e12
    device = jax.devices()[0]
    stats = device.memory_stats() or {}  # CPUs keep none
    if 'peak_bytes_in_use' in stats:
        result['peak_memory_gb'] = stats['peak_bytes_in_use'] / 1e9
    return {
        'what': f'{arguments.what} {arguments.config}',
        'device': f'{device.device_kind} ({device.platform})',
        'devices': _devices(),
        'batch_size': arguments.batch_size,
        'dtype': config.model.dtype,
        'images_per_second': rate,
        **result,
        'of_matmul_peak': achieved / (result['matmul_peak_tflops'] * _devices()),
    }


def _matmul_peak(size=2048, repeats=5):
    """FLOP/s of a float32-in, default-precision square product on this device, best of a few."""
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.matmul)
    a = jnp.ones((size, size))
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        product(a, a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])
