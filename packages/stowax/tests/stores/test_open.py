import pytest

from stowax._stores._local import LocalStore
from stowax._stores._open import open_store
from stowax.errors import InvalidNameError


@pytest.mark.parametrize(
    "path", ["/runs/a", "relative", "C:/runs", "/odd/gs:/a", "~/a"]
)
def test_paths_are_kept_by_the_local_store(path):
    """Whatever is no URL is a path of a mounted file system."""
    assert isinstance(open_store(path), LocalStore)


@pytest.mark.parametrize("scheme", ["gs", "s3", "memory", "http", "file"])
def test_urls_are_refused_with_what_is_supported(scheme):
    """A URL is refused by name, and the message says what works."""
    with pytest.raises(InvalidNameError, match=f"'{scheme}'.*mounted file system"):
        open_store(f"{scheme}://bucket/run")
