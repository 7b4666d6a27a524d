"""What a conversion loses, by trying it."""

import itertools
import warnings

import numpy as np
import pytest
from sample_trees import HOST_DTYPES, JAX_DTYPES, NUMPY_DTYPES, OWN_DTYPES, dtype

from stowax._plan._cast import convert, loss

SMALL = ["int8", "int16", "uint8", "uint16", "bool"]


@pytest.mark.parametrize("name", NUMPY_DTYPES)
def test_nothing_is_lost_without_a_conversion(name):
    """The same dtype loses nothing."""
    assert loss(dtype(name), dtype(name)) is None


@pytest.mark.parametrize(
    ("stored", "wanted"),
    list(itertools.product(SMALL, repeat=2)),
)
def test_integers_by_trial(stored, wanted):
    """Between integers it says a loss exactly where some value changes."""
    info = np.iinfo(stored) if stored != "bool" else np.iinfo("int8")
    ends = [0, 1] if stored == "bool" else [info.min, 0, 1, info.max]
    values = np.array(ends).astype(stored)

    changes = (values.astype(wanted).astype("int64") != values.astype("int64")).any()

    assert (loss(dtype(stored), dtype(wanted)) is not None) == bool(changes)


@pytest.mark.parametrize(
    ("stored", "wanted"),
    list(itertools.permutations([*JAX_DTYPES, *OWN_DTYPES, *HOST_DTYPES], 2)),
)
def test_every_pair_has_an_answer(stored, wanted):
    """There is an answer for every pair, and it names both dtypes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = loss(dtype(stored), dtype(wanted))

    assert found is None or found.startswith(f"{stored} to {wanted} ")


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [("float32", "bfloat16"), ("float64", "complex128"), ("float16", "float32")],
)
def test_precision_is_no_loss(stored, wanted):
    """Losing precision alone is what was asked for."""
    assert loss(dtype(stored), dtype(wanted)) is None


@pytest.mark.parametrize("wanted", [">f4", "<f4"])
def test_byte_order_is_no_loss(wanted):
    """The order of bytes is no property of values."""
    assert loss(np.dtype("<f4"), np.dtype(wanted)) is None


@pytest.mark.parametrize("wanted", [*NUMPY_DTYPES, *OWN_DTYPES, *HOST_DTYPES])
def test_every_conversion_is_known(wanted):
    """Values that both dtypes hold go from every dtype to every other one."""
    for name in [*NUMPY_DTYPES, *OWN_DTYPES, *HOST_DTYPES]:
        if {name, wanted} == {"int1", "float8_e8m0fnu"}:
            continue  # No value is common: one has no 1, the other no 0.
        value = 0 if "int1" in (name, wanted) else 1
        stored, expected = (
            np.full((2, 3), value).astype(dtype(n)) for n in (name, wanted)
        )

        found = convert(stored, dtype(wanted))

        assert found.dtype == dtype(wanted), name
        assert (found == expected).all(), name


def test_conversion_is_none():
    """An array that has the dtype already is not copied."""
    array = np.ones(3, np.float32)

    assert convert(array, np.dtype("float32")) is array
