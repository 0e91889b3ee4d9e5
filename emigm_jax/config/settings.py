"""The whole experiment as one frozen settings object.

`Config` is made from an ml_collections config by `nested.resolve`.
"""

import dataclasses

from emigm_jax.config.class_copies import class_copies
from emigm_jax.config.durations import duration, parse_duration, span
from emigm_jax.config.together import check_order
from emigm_jax.core import randomness
from emigm_jax.core.categorical import CodesConfig
from emigm_jax.core.masking import MaskingConfig
from emigm_jax.core.reveal import RevealConfig
from emigm_jax.core.setting import setting, validate
from emigm_jax.core.solvers import SolverConfig
from emigm_jax.errors import Reasons, UserError, check_range
from emigm_jax.models.config import ModelConfig
from emigm_jax.parallel.sharding import MeshConfig

DATASETS = ('digits', 'synthetic', 'latents', 'folder', 'tfds')
IN_PIXELS = ('digits', 'folder', 'tfds')  # data with pictures that pixels can be compared with
EPOCH_ORDERS = ('auto', 'permuted', 'keyed', 'blocks')  # each is a row of `data.orders.ORDERS`
NORMALIZATIONS = ('image', 'batch', 'tokens')
LR_SCHEDULES = ('constant', 'cosine')  # after warmup
MOST_STEPS = 2**31 - 1  # the state counts them in an int32
_DECAY = 0.99999999  # the largest


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training data and its tokens."""

    name: str = setting(
        'digits',
        "digits: scikit-learn's 8x8 digits; synthetic: normal latents or codes, to run without "
        'data; latents: a cache of `emigm prepare latents`; folder, tfds: pictures, encoded in the '
        'step',
        choices=DATASETS,
    )
    path: str = setting(
        '', 'where the data lie; latents: the cache; folder: of class folders; tfds: its data_dir'
    )
    tokenizer: str = setting(
        '',
        "checkpoint of the tokenizer; latents: only to show samples; folder, tfds: '' is pixels",
    )
    image_size: int = setting(
        256,
        'folder, tfds: pixels per side after the centre crop; 0: as the pictures suggest',
        low=1,
        beside=(0,),
    )
    order: str = setting(
        'auto',
        'of the examples in an epoch. permuted: a drawn permutation, held in memory; keyed: '
        'computed one by one, for any number; auto: permuted up to 2,097,152 examples, else keyed; '
        'blocks: 32 neighbours at a time, of which 512 are mixed, for latents on gs://',
        choices=EPOCH_ORDERS,
    )
    flip: bool = setting(True, 'latents, folder, tfds: every other picture is mirrored, by chance')
    held_back: int = setting(
        0,
        'every n-th example is held back from training, for `emigm evaluate --metrics '
        'bits_per_dim`; 0: none',
        low=2,
        beside=(0,),
    )
    dataset: str = setting('imagenet2012', 'tfds: name of the data set')
    split: str = setting('train', 'tfds: split of the data set')
    local_copy: str = setting(
        '', 'latents: the cache is copied to this folder of each host before training'
    )
    verify: bool = setting(
        False,
        'latents: the cache is compared with its checksums, and codes with their codebook, before '
        'training',
    )
    patch: int = setting(
        2,
        'pixels as tokens: pixels per side of a token; 0: folder, tfds: as suits their size',
        low=1,
        beside=(0,),
    )
    scale: float = setting(
        1.0,
        'pixels as tokens: those in [-1, 1] are multiplied by this; 0: folder, tfds: 1 / their '
        'standard deviation, measured',
        low=1e-6,
        beside=(0.0,),
    )
    levels: int = setting(
        0,
        'pixels as codes: steps of each colour; 0: pixels as numbers',
        low=2,
        high=256,
        beside=(0,),
    )
    latent_scale: float = setting(
        0.0,
        'latents are multiplied by this (`emigm prepare stats` measures it); 0: by the constant of '
        'their tokenizer',
        low=1e-6,
        beside=(0.0,),
    )
    examples: int = setting(
        1_281_167, "synthetic: how many examples there are (ImageNet's train split)", low=1
    )

    def __post_init__(self):
        validate(self, 'data')
        if self.name == 'latents' and not self.path:
            raise UserError("data.name = 'latents' needs data.path: say --config.data.path=CACHE")
        if self.name == 'digits' and not (self.patch and self.scale):
            raise UserError('data.patch = 0 and data.scale = 0 go with folder and tfds')
        if self.name in ('folder', 'tfds') and self.levels and self.tokenizer:
            raise UserError(
                'data.levels makes codes of pixels, data.tokenizer tokens of its own: say '
                "--config.data.levels=0 or --config.data.tokenizer=''"
            )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training objective."""

    masking: MaskingConfig = MaskingConfig()
    copies: int = setting(4, 'head diffusion: times drawn per token ("diffusion_batch_mul")', low=1)
    normalize: str = setting(
        'image',
        "image: mean over each image's masked tokens, then over images, which is what the official "
        'code computes in expectation (its images of one GPU share a count); batch: one mean over '
        'all; tokens: sum over masked tokens / N, with weight mdm the bound of MDM in nats',
        choices=NORMALIZATIONS,
    )
    label_drop: float = setting(
        0.1, 'probability that an image is trained with the null class', low=0.0, high=1.0
    )
    label_smoothing: float = setting(
        0.0, 'head categorical: share of the target spread over all codes', low=0.0, high=1.0
    )

    def __post_init__(self):
        validate(self, 'loss')


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and EMA with the official values (paper Tables 6, 7; main_emigm.py:91-113, 268-283)."""

    base_learning_rate: float = setting(
        1e-4, 'per 256 images: the learning rate is base * batch / 256', low=0.0
    )
    lr_schedule: str = setting(
        'constant',
        'after warmup: constant, or cosine down to min_learning_rate',
        choices=LR_SCHEDULES,
    )
    min_learning_rate: float = setting(0.0, 'where cosine ends', low=0.0)
    beta1: float = setting(0.9, 'decay of the first moment', low=0.0, high=_DECAY)
    beta2: float = setting(0.95, 'decay of the second moment', low=0.0, high=_DECAY)
    epsilon: float = setting(1e-8, 'added to the root of the second moment', low=0.0)
    weight_decay: float = setting(
        0.02, 'of transformer matrices and embeddings; not of biases, norms and the head', low=0.0
    )
    clip: float = setting(3.0, 'limit of the global gradient norm', low=1e-12)
    ema_decays: tuple[float, ...] = setting(
        (0.9999,),
        'averages of the weights that are kept, the first of which is shown',
        low=0.0,
        high=_DECAY,
    )
    ema_warmup: bool = setting(
        True,
        'step n averages with at most (1 + n) / (10 + n), so that short runs have averages, too; '
        'the published recipes have none',
    )

    def __post_init__(self):
        validate(self, 'optimizer')
        if not self.ema_decays:
            raise UserError('optimizer.ema_decays must name at least one decay (0 keeps a copy)')
        if len({*self.ema_decays}) < len(self.ema_decays):
            raise UserError(f'optimizer.ema_decays names a decay twice: {self.ema_decays}')


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How long and how often. Durations are strings: '500 steps', '800 epochs', '1e6 examples'."""

    batch_size: int = setting(2048, 'images per step, on all devices together', low=1)
    accumulate: int = setting(1, 'microbatches per step; must divide batch_size', low=1)
    total: str = duration('800 epochs', 'length of the run')
    warmup: str = duration('100 epochs', 'the learning rate grows linearly from 0 so long')
    log_every: str = duration('100 steps', 'metrics')
    sample_every: str = duration('50 epochs', 'grid of samples as PNG; 0 steps: never')
    checkpoint_every: str = duration('5 epochs', 'checkpoints')
    keep: int = setting(2, 'newest checkpoints that are kept', low=1)
    keep_every: str = duration(
        '0 steps', 'checkpoints kept for good; 0 steps: none but the newest and the best'
    )
    sample_images: int = setting(
        40, 'images in a grid, at most: a row for each of up to ten classes', low=1
    )
    profile: str = span(
        '', "'steps 50 to 55' writes what they do to WORKDIR/tensorboard; '': nothing"
    )
    wandb: str = setting(
        '', "Weights & Biases beside the files: PROJECT or ENTITY/PROJECT; '': without"
    )
    init: str = setting(
        '',
        'checkpoint whose weights the run begins with: converted, exported, a workdir or one of '
        "its steps; '': random ones",
    )
    init_weights: str = setting(
        '', "which of init's: an EMA decay, or params as they were trained; '': the first EMA"
    )
    init_classes: str = class_copies(
        "classes that begin as one of init's, 'NEW=OLD,...': '0=207,cat=otter'; the others are "
        "new. '': all are taken if there are as many, else all are new"
    )

    def __post_init__(self):
        validate(self, 'training')
        reasons = Reasons()
        for name in ('init_weights', 'init_classes'):
            if getattr(self, name) and not self.init:
                reasons.add(f'training.{name} goes with training.init')
        if self.batch_size % self.accumulate:
            reasons.add(
                f'training.accumulate = {self.accumulate} does not divide '
                f'training.batch_size = {self.batch_size}'
            )
        reasons.check()


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """Everything that decides which image a seed and a class give."""

    seed: int = setting(
        0, 'base seed; image i uses fold_in(seed, i)', low=0, high=randomness.LAST_SEED
    )
    reveal: RevealConfig = RevealConfig()
    solver: SolverConfig = SolverConfig()
    codes: CodesConfig = CodesConfig()

    def __post_init__(self):
        validate(self, 'sampling')


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Measuring the first EMA weights while training, with the run's sampling settings."""

    every: str = duration('0 steps', 'how often; 0 steps: never')
    num_images: int = setting(
        5000,
        'how many: class by class, image i from seed i',
        low=4,
        high=randomness.LAST_SEED + 1,
    )
    reference: str = setting(
        '',
        "statistics of real images, or a folder of them; digits, folder, tfds: '' compares pixels",
    )
    inception: str = setting('', "checkpoint of FID's network, from `emigm convert`")
    metrics: str = setting(
        'fid,inception_score', 'of those of `emigm evaluate`; not heeded in pixels'
    )
    batch_size: int = setting(64, 'images at a time, on all processes together', low=1)

    def __post_init__(self):
        validate(self, 'evaluation')
        if bool(self.reference) != bool(self.inception):
            raise UserError('evaluation.reference and evaluation.inception go together')


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    seed: int = setting(
        0,
        'of initial weights and of all randomness of training',
        low=0,
        high=randomness.LAST_SEED,
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        validate(self)
        check_order(self.model, self.sampling.reveal)
        if self.evaluates and not self.evaluation.reference and self.data.name not in IN_PIXELS:
            raise UserError(
                'evaluation.every needs evaluation.reference and evaluation.inception '
                f'(only {", ".join(IN_PIXELS)} are compared in pixels)'
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
        check_range(f'{name} in steps', steps, high=MOST_STEPS)
        return max(1, steps) if amount else 0
