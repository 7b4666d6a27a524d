"""The public face of `stowax_flax`."""

import stowax_flax


def test_all_is_what_is_public():
    """`__all__` lists every public name, and each says it lives in `stowax_flax`."""
    public = {name for name in vars(stowax_flax) if not name.startswith("_")}
    assert set(stowax_flax.__all__) == public
    for name in ("Module", "abstract_state"):
        assert getattr(stowax_flax, name).__module__ == "stowax_flax"
