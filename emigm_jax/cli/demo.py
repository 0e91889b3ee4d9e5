"""`emigm demo`: a page to play with a checkpoint."""

from emigm_jax.cli import arguments as shared
from emigm_jax.cli.main import Parser


def run(argv: list[str]) -> int:
    """Runs the command."""
    parser = Parser(
        'demo',
        'Serves a page on this machine: pictures appear as their tokens are revealed, a mask is\n'
        'painted on one of them or on your own; settings come as a link and as the command that\n'
        'makes the same pictures. The settings below are what it begins with.',
        'emigm demo --checkpoint runs/digits\n  '
        'emigm demo --checkpoint emigm-l-256 --tokenizer kl16 --batch-size 1',
    )
    shared.add_model(parser)
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on (127.0.0.1: this machine alone; 0.0.0.0: all of the network)',
    )
    parser.add_argument('--port', type=int, default=7860, help='(7860); 0 takes any that is free')
    shared.add_sampling(parser, batch_size=16)
    arguments = parser.parse_args(argv)

    from emigm_jax.api.model import load
    from emigm_jax.checkpoints import runs
    from emigm_jax.playground import server
    from emigm_jax.playground.settings import Offer

    server.check_installed()
    given = shared.sampling_options(arguments)
    shared.sampling_config(arguments, runs.require(arguments.checkpoint))  # before the work
    with server.listening(arguments.host, arguments.port) as place:
        model = load(
            arguments.checkpoint,
            tokenizer=arguments.tokenizer,
            weights=arguments.weights,
            dtype=arguments.dtype,
            batch_size=arguments.batch_size,
            guide=arguments.guide,
        )
        offer = Offer(model, arguments.batch_size, arguments.preset or '', given)
        page = server.Server(offer, place)
        print(f'{page.url} (Ctrl-C ends it)', flush=True)
        page.run()
    return 0
