"""Many arrays that TensorStore writes into one OCDBT database."""

import tensorstore as ts


def write_database(directory, values, **config):
    """Writes arrays of zarr3 by name, in one transaction.

    Args:
        directory: Of the database.
        values: The arrays.
        config: Of the database, such as `max_inline_value_bytes`.
    """
    context = ts.Context()
    base = {"driver": "file", "path": f"{directory}/"}
    with ts.Transaction(atomic=True) as transaction:
        for name, value in values.items():
            kvstore = {"driver": "ocdbt", "base": base, "path": name}
            if config:
                kvstore["config"] = config
            array = ts.open(
                {"driver": "zarr3", "kvstore": kvstore},
                create=True,
                dtype=value.dtype,
                shape=value.shape,
                transaction=transaction,
                context=context,
            ).result()
            array.write(value).result()
