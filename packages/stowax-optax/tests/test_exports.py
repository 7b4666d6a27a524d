"""The public face of `stowax_optax`."""

import stowax_optax


def test_all_is_what_is_public():
    """`__all__` lists every public name, and each says it lives in `stowax_optax`."""
    public = {name for name in vars(stowax_optax) if not name.startswith("_")}
    assert set(stowax_optax.__all__) == public
    for name in public:
        assert getattr(stowax_optax, name).__module__ == "stowax_optax"
