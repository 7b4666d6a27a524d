"""The package shows what it promises, under its own name."""

from __future__ import annotations

import stowax_grain


def test_public_names_belong_to_the_package():
    """Everything in `__all__` says that it lives in `stowax_grain`."""
    assert stowax_grain.__all__ == ["Iterator"]
    assert stowax_grain.Iterator.__module__ == "stowax_grain"
