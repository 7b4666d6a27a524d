"""Errors about the steps of a run, under the names that Orbax users import."""

from stowax.errors import StepAlreadyExistsError as StepAlreadyExistsError
from stowax.errors import StepNotFoundError as StepNotFoundError

__all__ = ["StepAlreadyExistsError", "StepNotFoundError"]
