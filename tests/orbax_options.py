"""Options of Orbax, given by name."""

from orbax.checkpoint import v1


def orbax_context(saving, *, rich_types=False):
    """A Context of Orbax with options of `array.saving`."""
    found = v1.Context()
    for name, value in saving.items():
        place = found.array.saving
        if name == "chunk_byte_size":
            place = place.storage_options
        setattr(place, name, value)
    found.pytree.saving.pytree_metadata_options.support_rich_types = rich_types
    return found
