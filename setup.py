"""What pyproject.toml has no words for: configs lie beside the package, but inside of a wheel."""

from setuptools import find_packages, setup

setup(
    # What `--config NAME` finds lies beside the package in a checkout, inside of it when installed.
    packages=[
        *find_packages(include=['emigm_jax', 'emigm_jax.*']),
        *('emigm_jax.configs', 'emigm_jax.configs.sweeps'),
    ],
    package_dir={'emigm_jax.configs': 'configs'},
)
