"""The whole experiment as one frozen settings object.

`Config` is made from an ml_collections config by `nested.resolve`.
"""

import dataclasses

from emigm_jax.config.durations import parse_duration
from emigm_jax.core.masking import MaskingConfig
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.core.solvers import SolverConfig
from emigm_jax.errors import UserError, check_choice, check_range
from emigm_jax.models.emigm import ModelConfig
from emigm_jax.parallel.sharding import MeshConfig

DATASETS = ('digits', 'synthetic', 'latents', 'folder', 'tfds')
NORMALIZATIONS = ('image', 'batch')
LR_SCHEDULES = ('constant', 'cosine')  # after warmup


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
class LossConfig:
    """The training objective."""

    masking: MaskingConfig = MaskingConfig()
    copies: int = 4  # diffusion times drawn per token ("diffusion_batch_mul")
    # image: mean over each image's masked tokens, then over images, which is what the official code
    # computes in expectation (its images of one GPU share a count). batch: one mean over all.
    normalize: str = 'image'
    label_drop: float = 0.1  # probability that an image is trained with the null class

    def __post_init__(self):
        check_choice('loss.normalize', self.normalize, NORMALIZATIONS)
        check_range('loss.copies', self.copies, 1)
        check_range('loss.label_drop', self.label_drop, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and EMA with the official values (paper Tables 6, 7; main_emigm.py:91-113, 268-283)."""

    base_learning_rate: float = 1e-4  # per 256 images: lr = base * batch / 256
    lr_schedule: str = 'constant'  # after warmup: constant, or cosine down to min_learning_rate
    min_learning_rate: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.02  # transformer matrices and embeddings; no biases, norms, head
    clip: float = 3.0  # global gradient norm
    ema_decays: tuple[float, ...] = (0.9999,)  # no warmup, starts at the initial weights

    def __post_init__(self):
        check_choice('optimizer.lr_schedule', self.lr_schedule, LR_SCHEDULES)
        if not self.ema_decays:
            raise UserError('optimizer.ema_decays must name at least one decay (0 keeps a copy)')
        for decay in self.ema_decays:
            check_range('optimizer.ema_decays', decay, 0.0, 0.99999999)
        check_range('optimizer.base_learning_rate', self.base_learning_rate, 0.0)
        check_range('optimizer.min_learning_rate', self.min_learning_rate, 0.0)
        check_range('optimizer.weight_decay', self.weight_decay, 0.0)
        check_range('optimizer.clip', self.clip, 1e-12)


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
        for name in (
            'total',
            'warmup',
            'log_every',
            'sample_every',
            'checkpoint_every',
            'keep_every',
        ):
            parse_duration(f'training.{name}', getattr(self, name))


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Everything that decides which image a seed and a class give."""

    seed: int = 0  # the run's base seed; image i uses fold_in(seed, i)
    reveal: RevealConfig = RevealConfig()
    solver: SolverConfig = SolverConfig()


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
            raise UserError(
                'evaluation.every needs evaluation.reference and evaluation.inception '
                '(only digits are compared in pixels)'
            )
        if self.training.batch_size % self.training.accumulate:
            raise UserError(
                f'training.accumulate = {self.training.accumulate} does not divide '
                f'training.batch_size = {self.training.batch_size}'
            )

    @property
    def evaluates(self) -> bool:
        """Whether the run is evaluated on the way."""
        return parse_duration('evaluation.every', self.evaluation.every)[0] > 0

    def steps(self, name: str, examples: int) -> int:
        """A duration of `training`, or 'evaluation.every', in steps of a data set of `examples`."""
        name = name if '.' in name else f'training.{name}'
        group, field = name.split('.')
        amount, unit = parse_duration(name, getattr(getattr(self, group), field))
        batch = self.training.batch_size
        per = {'step': 1.0, 'epoch': max(1, examples // batch), 'example': 1.0 / batch}[unit]
        steps = round(amount * per)
        return max(1, steps) if amount else 0
