"""`python -m emigm_jax`: the command `emigm`."""

import sys

from emigm_jax.cli.main import main

sys.exit(main())
