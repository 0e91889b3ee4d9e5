"""`emigm prepare stats`: the scale of a latent cache."""

from emigm_jax.cli.main import Parser


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'prepare stats',
        'Measures the scale of a cache, 1 / standard deviation of its latents, and its error.',
        'emigm prepare stats in256',
    )
    parser.add_argument('cache', help='of `emigm prepare latents`, local or gs://')
    path = parser.parse_args(argv).cache

    import functools

    from emigm_jax.data import latents, scale
    from emigm_jax.io.progress import Bar

    measured = scale.measure(latents.Cache(path), functools.partial(Bar, unit=' shards'))
    print(f'images              {measured.images:,}, every shard as its checksum says')
    print(f'mean                {measured.mean:.5f}')
    print(f'scale (1 / std)     {measured.scale:.5f} +- {measured.error:.5f}')
    print(f"tokenizer's scale   {measured.constant:.5f}, {measured.origin}")
    print(
        f'difference          {measured.scale - measured.constant:+.5f}, {measured.deviation:+.1f} '
        'standard errors'
    )
    print(f'verdict             {measured.verdict}')
    return 0
