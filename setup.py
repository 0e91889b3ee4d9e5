"""For tools that ask for this file; all there is to say is in pyproject.toml."""

from setuptools import setup

setup()
