"""Which settings may differ when a run goes on, by themselves or on request."""

from collections.abc import Collection, Iterable
from typing import Any

from emigm_jax.config import load, nested
from emigm_jax.config.settings import Config
from emigm_jax.errors import UserError

# They change no state that is already there.
_FREE = (
    'training.total',
    'training.log_every',
    'training.sample_every',
    'training.keep',
    'training.checkpoint_every',
    'training.sample_images',
    'training.profile',
    'training.wandb',
    'sampling.',
    'evaluation.',
    'mesh.',
    # Where the data lies; checkpoints carry a fingerprint of what it is.
    'data.path',
    'data.tokenizer',
    'data.local_copy',
    'data.verify',
)
# Newer than some runs: a run goes on with the value that it began with, unless told otherwise.
_KEPT = ('optimizer.ema_warmup', 'data.order')
# On request: they change what the next steps do, but neither the form of the state nor the data.
_CHANGEABLE = (
    *('seed', 'training.', 'optimizer.', 'loss.', 'data.flip', 'data.order'),
    *('model.attention_dropout', 'model.projection_dropout'),
    *('model.remat', 'model.unroll', 'model.kernels', 'model.dtype'),
)
# But these: averages are parts of the state, and what a run began with has been.
_FIXED = (
    *('optimizer.ema_decays', 'training.init', 'training.init_weights', 'training.init_classes'),
)


def differences(saved: Config, requested: Config) -> dict[str, tuple[Any, Any]]:
    """Settings that differ and change how a run goes on: {name: (saved, requested)}."""
    old, new = (nested.flatten(nested.as_dict(config)) for config in (saved, requested))
    return {
        name: (old[name], value)
        for name, value in new.items()
        if value != old[name] and not name.startswith(_FREE)
    }


def changeable(name: str) -> bool:
    """Whether a run that goes on can do so with another value of this setting."""
    return name.startswith((*_FREE, *_CHANGEABLE)) and name not in _FIXED


def named(name: str, names: Collection[str]) -> bool:
    """Whether a setting is one of `names`, or in a group of that name."""
    return any(name == each or name.startswith(f'{each}.') for each in names)


def check_names(names: Iterable[str]) -> None:
    """Raises UserError unless each is a setting, or a group of them, that can change in a run."""
    known = nested.flatten(nested.as_dict(Config()))
    for name in names:
        meant = [setting for setting in known if named(setting, (name,))]
        if not meant:
            raise UserError(
                f'--allow-changes {name}: no such setting{nested.near_setting(name, known)}; '
                '`emigm settings` lists them all'
            )
        if not any(map(changeable, meant)):
            raise UserError(
                f'--allow-changes {name}: cannot change in a run that goes on; a new run in '
                'another --workdir may start from its weights by --config.training.init'
            )


def check(saved: Config, requested: Config, allowed: Collection[str], workdir: object) -> None:
    """Raises UserError unless all `differences` are `allowed` and possible."""
    changes = differences(saved, requested)
    refused = [n for n in changes if not (named(n, allowed) and changeable(n))]
    if not refused:
        return
    shown = [f'{name} {changes[name][0]!r} -> {changes[name][1]!r}' for name in refused]
    fixed = [name for name in refused if not changeable(name)]
    advice = 'use another --workdir, or the config it was made with'
    if not fixed:
        advice += f', or --allow-changes {",".join(refused)} to go on with these'
    elif any(named(name, allowed) for name in fixed):
        advice += f'; {", ".join(fixed)} cannot change in a run that goes on'
    raise UserError(
        f'{workdir} holds a checkpoint of another config ({", ".join(shown[:4])}'
        f'{", ..." * (len(shown) > 4)}): {advice}'
    )


def as_begun(saved: Config, requested: Config, allowed: Collection[str]) -> Config:
    """A requested config with the values that a run keeps."""
    values = nested.flatten(nested.as_dict(saved))
    kept = {name: values[name] for name in _KEPT if not named(name, allowed)}
    return load.config_of(requested, kept)
