"""What becomes of values when another dtype is asked for; NumPy is the oracle."""

import warnings

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from sample_states import cast, context, examples
from sample_trees import (
    HOST_DTYPES,
    JAX_DTYPES,
    NUMPY_DTYPES,
    OWN_DTYPES,
    differences,
    dtype,
    mesh,
)

import stowax
from stowax.errors import TreeMismatchError
from stowax.testing import MemoryStore

PATH = "/runs/checkpoint"


def pairs():
    """A dtype that is stored, and one that is asked for, of JAX or of NumPy."""
    host = st.sampled_from([*NUMPY_DTYPES, *OWN_DTYPES, *HOST_DTYPES])
    device = st.sampled_from([*JAX_DTYPES, *OWN_DTYPES])
    return st.one_of(
        st.tuples(st.just("numpy"), host, host),
        st.tuples(st.just("jax"), device, device),
    )


class TestAnyPair:
    """Up to eight leaves at once, each with a pair of its own."""

    @staticmethod
    def saved(drawn, values, sharding):
        """State, abstract state and expected result; the first is saved."""
        state, target, expected = {}, {}, {}
        for i, (kind, stored, asked) in enumerate(drawn):
            name, host = f"leaf{i}", cast(np.asarray(values), stored)
            if kind == "numpy":
                state[name], expected[name] = host, cast(host, asked)
                target[name] = np.empty(host.shape, dtype(asked))
            else:
                state[name] = jax.device_put(host, sharding)
                expected[name] = jax.device_put(cast(host, asked), sharding)
                target[name] = jax.ShapeDtypeStruct(
                    host.shape, dtype(asked), sharding=sharding
                )
        stowax.save(PATH, state)
        return state, target, expected

    @given(
        drawn=st.lists(pairs(), min_size=1, max_size=8),
        values=st.lists(st.integers(-3, 300), min_size=8, max_size=8),
        sharding=st.sampled_from([None, NamedSharding(mesh(4), P("x"))]),
    )
    @examples(50)
    def test_values(self, drawn, values, sharding):
        """The dtype is obeyed; where nothing is said, whole numbers stay the same."""
        with context(MemoryStore()), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            state, target, expected = self.saved(drawn, values, sharding)
            loaded = stowax.load(PATH, target)

        assert differences(expected, loaded, placement=True) == []
        assert len(caught) <= 1
        text = "".join(str(warning.message) for warning in caught)
        for name, (_, stored, asked) in zip(state, drawn, strict=True):
            if "int" in stored and "int" in asked and f"{name}: " not in text:
                before, after = (np.asarray(t[name], int) for t in (state, loaded))
                assert before.tolist() == after.tolist()

    @given(drawn=st.lists(pairs(), min_size=1, max_size=8))
    @examples(50)
    def test_safe(self, drawn):
        """What is warned of is exactly what safe casting refuses."""
        store = MemoryStore()
        with context(store), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, target, expected = self.saved(drawn, [0, 1], None)
            stowax.load(PATH, target)
        with context(store, casting="safe"):
            try:
                loaded, refused = stowax.load(PATH, target), ()
            except TreeMismatchError as error:
                refused = error.problems

        warned = [
            line for warning in caught for line in str(warning.message).split(": ")
        ]
        assert len(caught) == bool(refused)
        for line in refused:
            reason = line.partition("; ")[2]
            assert reason
            assert any(reason in each for each in warned)
        assert refused or differences(expected, loaded, placement=True) == []
