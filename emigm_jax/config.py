"""The whole experiment as one frozen settings object, made from an ml_collections config.

`configs/*.py` start from `defaults()` and change what they need; `resolve` turns the result into
dataclasses, and every wrong name or value into one line. `as_dict` is what checkpoints carry.
"""

import dataclasses
import re

import ml_collections

from emigm_jax.errors import UserError, check_choice, check_range, near
from emigm_jax.models.emigm import ModelConfig
from emigm_jax.sampling import SamplingConfig
from emigm_jax.sharding import MeshConfig
from emigm_jax.training.loss import LossConfig
from emigm_jax.training.state import OptimizerConfig

DATASETS = ('digits', 'synthetic', 'latents', 'folder', 'tfds')


def parse_duration(name, text):
    """'100 epochs' -> (100.0, 'epoch')."""
    match = re.fullmatch(r'\s*([0-9.]+(?:e\+?[0-9]+)?)\s*(step|epoch|example)s?\s*', str(text))
    if not match:
        raise UserError(f"{name} must look like '500 steps', '80 epochs' or '1e6 examples', "
                        f'not {text!r}')  # fmt: skip
    return float(match[1]), match[2]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training data and its tokens."""

    name: str = 'digits'  # digits: scikit-learn's 8x8 digits; synthetic: normal latents;
    # latents: a cache of `emigm prepare latents`; folder, tfds: pictures, encoded in the step
    path: str = ''  # latents: the cache; folder: of class folders; tfds: its data_dir
    tokenizer: str = ''  # checkpoint; latents: only to show samples; folder, tfds: '' is pixels
    image_size: int = 256  # folder, tfds: pixels per side after the centre crop
    flip: bool = True  # latents, folder, tfds: every other picture is mirrored, by chance
    dataset: str = 'imagenet2012'  # tfds: name of the data set
    split: str = 'train'  # tfds
    local_copy: str = ''  # latents: copied to this folder of each host before training
    verify: bool = False  # latents: compare the cache with its checksums before training
    patch: int = 2  # pixels: pixels per side of a token
    scale: float = 1.0  # pixels: those in [-1, 1] are multiplied by this
    examples: int = 1_281_167  # synthetic: how many there are (ImageNet's train split)

    def __post_init__(self):
        check_choice('data.name', self.name, DATASETS)
        if self.name in ('latents', 'folder') and not self.path:
            raise UserError(f'data.name = {self.name!r} needs data.path')
        check_range('data.image_size', self.image_size, 1)
        check_range('data.patch', self.patch, 1)
        check_range('data.scale', self.scale, 1e-6)
        check_range('data.examples', self.examples, 1)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long and how often. Durations are strings: '500 steps', '800 epochs', '1e6 examples'."""

    batch_size: int = 2048
    accumulate: int = 1  # microbatches per step
    total: str = '800 epochs'
    warmup: str = '100 epochs'  # linear learning-rate warmup
    log_every: str = '100 steps'  # metrics
    sample_every: str = '50 epochs'  # grid of samples as PNG; 0 steps: never
    checkpoint_every: str = '5 epochs'
    keep: int = 2  # checkpoints kept, newest first
    keep_every: str = '0 steps'  # kept for good; 0 steps: none but the newest and the best
    sample_images: int = 40  # in a grid

    def __post_init__(self):
        check_range('training.batch_size', self.batch_size, 1)
        check_range('training.accumulate', self.accumulate, 1)
        check_range('training.keep', self.keep, 1)
        check_range('training.sample_images', self.sample_images, 1)
        for name in ('total', 'warmup', 'log_every', 'sample_every', 'checkpoint_every',
                     'keep_every'):  # fmt: skip
            parse_duration(f'training.{name}', getattr(self, name))


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Measuring the first EMA weights while training, with the run's sampling settings."""

    every: str = '0 steps'  # 0 steps: never
    num_images: int = 5000  # class by class, image i from seed i
    reference: str = ''  # statistics of real images; digits: '' compares pixels
    inception: str = ''  # checkpoint of FID's network, from `emigm convert`
    metrics: str = 'fid,inception_score'  # of those of `emigm evaluate`; not heeded in pixels
    batch_size: int = 64  # images at a time, on all processes together

    def __post_init__(self):
        parse_duration('evaluation.every', self.every)
        check_range('evaluation.num_images', self.num_images, 4)
        check_range('evaluation.batch_size', self.batch_size, 1)
        if bool(self.reference) != bool(self.inception):
            raise UserError('evaluation.reference and evaluation.inception go together')


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    seed: int = 0  # of initial weights and of all randomness of training
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        check_range('seed', self.seed, 0)
        if self.evaluates and not self.evaluation.reference and self.data.name != 'digits':
            raise UserError('evaluation.every needs evaluation.reference and evaluation.inception '
                            '(only digits are compared in pixels)')  # fmt: skip
        if self.training.batch_size % self.training.accumulate:
            raise UserError(
                f'training.accumulate = {self.training.accumulate} does not divide '
                f'training.batch_size = {self.training.batch_size}'
            )

    @property
    def evaluates(self):
        """Whether the run is evaluated on the way."""
        return parse_duration('evaluation.every', self.evaluation.every)[0] > 0

    def steps(self, name, examples):
        """A duration of `training`, or 'evaluation.every', in steps of a data set of `examples`."""
        name = name if '.' in name else f'training.{name}'
        group, field = name.split('.')
        amount, unit = parse_duration(name, getattr(getattr(self, group), field))
        batch = self.training.batch_size
        per = {'step': 1.0, 'epoch': max(1, examples // batch), 'example': 1.0 / batch}[unit]
        steps = round(amount * per)
        return max(1, steps) if amount else 0


def mutable(settings):
    """Settings as a mutable ConfigDict with known names and types."""
    return ml_collections.ConfigDict(as_dict(settings))


def defaults():
    """The default settings as a mutable ConfigDict."""
    return mutable(Config())


def as_dict(settings):
    """Settings -> nested dict of plain values (tuples stay tuples)."""
    return dataclasses.asdict(settings)


def resolve(config):
    """ConfigDict or nested dict -> `Config`.

    Raises:
      UserError: an unknown name, a value of the wrong type, or one that makes no sense.
    """
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    return build(Config, config)


def build(cls, values, prefix=''):
    """Nested dict -> frozen settings of class `cls`; raises as `resolve`."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise UserError(f'unknown setting {prefix}{name}{near(name, fields)}')
    built = {}
    for name, value in values.items():
        default = getattr(cls(), name)
        path = f'{prefix}{name}'
        if dataclasses.is_dataclass(default):
            if not isinstance(value, dict):
                raise UserError(f'{path} is a group of settings, not {value!r}')
            built[name] = build(type(default), value, path + '.')
        else:
            built[name] = _coerce(path, value, type(default))
    return cls(**built)


def _coerce(path, value, kind):
    if kind is tuple and isinstance(value, (list, tuple)):
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise UserError(f'{path} must be {kind.__name__}, not {value!r}')
    return value


# Settings that may differ when a run is resumed: they change no state that is already there.
_FREE = ('training.total', 'training.log_every', 'training.sample_every', 'training.keep',
         'training.checkpoint_every', 'training.sample_images', 'sampling.', 'evaluation.', 'mesh.',
         # Where the data lies; checkpoints carry a fingerprint of what it is.
         'data.path', 'data.tokenizer', 'data.local_copy', 'data.verify')  # fmt: skip


def differences(saved, asked):
    """Settings that differ between two configs and must not on resuming: ['name: a -> b', ...]."""
    flat = lambda c: dict(flatten(as_dict(c)))
    saved, asked = flat(saved), flat(asked)
    return [
        f'{name} {saved[name]!r} -> {value!r}'
        for name, value in asked.items()
        if value != saved[name] and not name.startswith(_FREE)
    ]


def flatten(tree, prefix=''):
    """Nested dict -> pairs ('group.name', value)."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value
