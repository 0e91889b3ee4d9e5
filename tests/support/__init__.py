"""Helpers of the tests, and how calls are checked while they run."""

from beartype import BeartypeConf, beartype

# Named in pyproject.toml. An int is a float, as it is for every type checker.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
