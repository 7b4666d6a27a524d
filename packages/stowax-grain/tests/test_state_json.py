"""Iterator states survive JSON with equal values and equal types."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowax import errors
from stowax_grain._state_json import decode_state, encode_state

_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
_keys = st.integers() | st.text() | st.sampled_from(["$dict", "$tuple", "$bytes"])
_states = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(_keys, inner, max_size=4)
    ),
    max_leaves=12,
)


def _through_json(state):
    return decode_state(json.loads(json.dumps(encode_state(state))))


def _typed(value):
    """Makes `1 == True` and `1 == 1.0` visible to a comparison."""
    match value:
        case dict():
            return {(type(k), k): _typed(v) for k, v in value.items()}
        case list() | tuple():
            return type(value), [_typed(element) for element in value]
        case _:
            return type(value), value


@given(_states)
def test_states_come_back_equal(state):
    """Any state of plain Python values comes back with its values and types."""
    assert _typed(_through_json(state)) == _typed(state)


def test_integer_keys_stay_integers():
    """The shard numbers of an interleave are not turned into strings."""
    state = {"future_states": {2: {"next_index": 1}, 3: {"next_index": 0}}}

    assert _through_json(state) == state


def test_plain_states_are_written_plainly():
    """A state that JSON can say is readable on disk as it is."""
    state = {"next_index": 5, "parents": [{"a": None}, {"b": "text"}]}

    assert encode_state(state) == state


def test_numpy_scalars_become_python_numbers():
    """Custom iterators may count with NumPy integers."""
    state = {"next": np.int64(7), "rate": np.float32(0.5), "done": np.bool_(True)}

    restored = _through_json(state)

    assert _typed(restored) == _typed({"next": 7, "rate": 0.5, "done": True})


@pytest.mark.parametrize("dtype", ["uint32", "float32", "bool", "U3", ">i2"])
def test_arrays_keep_dtype_and_shape(dtype):
    """Arrays, such as the state of a random generator, come back bit for bit."""
    array = np.arange(6).reshape(2, 3).astype(dtype)

    restored = _through_json(array)

    assert restored.dtype == array.dtype
    np.testing.assert_array_equal(restored, array, strict=True)


def test_states_that_json_cannot_say_are_refused_by_name():
    """The error names the place of the value and its class."""
    with pytest.raises(errors.UnsupportedLeafError, match=r"state\['a'\]\[1\].*object"):
        encode_state({"a": [0, object()]})


def test_unknown_escapes_are_refused():
    """A `$` object of another release is not taken for a dictionary."""
    with pytest.raises(ValueError, match=r"\$later"):
        decode_state({"$later": 1})
