"""Names of the peer that have been replaced, there and here."""

import pytest

import stowax


def test_old_names_work_with_a_word(tmp_path):
    """The old names do what the new ones do, and say which these are."""
    with pytest.warns(DeprecationWarning, match=r"stowax\.save"):
        stowax.save_pytree(tmp_path / "a", {"x": 1})
    with pytest.warns(DeprecationWarning, match=r"stowax\.save_async"):
        stowax.save_pytree_async(tmp_path / "b", {"x": 2}).result()
    with pytest.warns(DeprecationWarning, match=r"stowax\.load"):
        assert stowax.load_pytree(tmp_path / "a", {"x": int}) == {"x": 1}
    with pytest.warns(DeprecationWarning, match=r"stowax\.load_async"):
        assert stowax.load_pytree_async(tmp_path / "b").result() == {"x": 2}
    with pytest.warns(DeprecationWarning, match=r"stowax\.metadata"):
        assert stowax.pytree_metadata(tmp_path / "a").metadata == {"x": 0}
