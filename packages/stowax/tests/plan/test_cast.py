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


FLOATS = [
    name
    for name in [*JAX_DTYPES, *OWN_DTYPES, *HOST_DTYPES]
    if name.startswith(("float", "bfloat"))
]


@pytest.mark.parametrize(("stored", "wanted"), list(itertools.permutations(FLOATS, 2)))
def test_special_values_by_trial(stored, wanted):
    """Where a sign, zero, infinity or NaN does not survive, it says a loss."""
    values = np.array([-1, 0, np.inf, np.nan], np.float32)
    with np.errstate(all="ignore"):
        before = convert(values, dtype(stored))
        after = convert(before, dtype(wanted)).astype(np.float32)
    before = before.astype(np.float32)
    is_held = (before == values) | (np.isnan(before) & np.isnan(values))

    changes = ~((after == before) | (np.isnan(after) & np.isnan(before)))

    if (changes & is_held).any():
        assert loss(dtype(stored), dtype(wanted)) is not None


@pytest.mark.parametrize(
    ("stored", "wanted", "lost"),
    [
        ("float32", "float8_e8m0fnu", "infinity or negative values or zero"),
        ("float16", "float8_e5m2fnuz", "infinity"),
        ("float8_e4m3", "float8_e4m3fn", "infinity"),
        ("float8_e3m4", "float6_e3m2fn", "NaN or infinity"),
        ("bool", "int1", "values beyond -1 to 0"),
        ("bool", "float8_e8m0fnu", "values beyond"),
    ],
)
def test_what_the_smallest_types_lack(stored, wanted, lost):
    """A type that lacks a sign, zero, infinity or NaN loses those of others."""
    assert f"cannot hold {lost}" in loss(dtype(stored), dtype(wanted))


@pytest.mark.parametrize("wanted", ["uint1", "int2", "bfloat16", "float8_e4m3fn"])
def test_a_bool_is_a_number(wanted):
    """Zero and one are numbers of nearly every type."""
    assert loss(dtype("bool"), dtype(wanted)) is None


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
