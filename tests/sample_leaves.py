"""Two types of leaves that tests teach: a text with facts, and an array that is spread.

The first is stored as a string, the second as a `jax.Array` on any mesh.
"""

import dataclasses
import datetime as dt
import decimal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class DecimalHandler:
    """Exact decimal numbers, as strings."""

    typestr = "decimal.Decimal"

    def accepts(self, value):
        return isinstance(value, decimal.Decimal)

    def describe(self, value):
        return None

    def stage(self, value):
        return str(value)

    def accepts_target(self, target):
        return target is decimal.Decimal or self.accepts(target)

    def want(self, target, facts):
        return None

    def place(self, stored, facts, target):
        return decimal.Decimal(stored)


class DatetimeHandler:
    """Points in time, as microseconds since the epoch in UTC, with their time zone."""

    typestr = "datetime.datetime"

    def accepts(self, value):
        return isinstance(value, dt.datetime) and value.tzinfo is not None

    def describe(self, value):
        offset = value.utcoffset()
        return {"offset_secs": offset.total_seconds(), "name": value.tzname()}

    def stage(self, value):
        return (value - _EPOCH) // dt.timedelta(microseconds=1)

    def accepts_target(self, target):
        return target is dt.datetime or isinstance(target, dt.datetime)

    def want(self, target, facts):
        return int

    def place(self, stored, facts, target):
        offset = dt.timedelta(seconds=facts["offset_secs"])
        zone = dt.timezone(offset, facts["name"])
        return (_EPOCH + dt.timedelta(microseconds=stored)).astimezone(zone)


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Quantised:
    """Numbers of few bits with one scale; a container to JAX, a leaf to checkpoints."""

    values: Any
    scale: float = dataclasses.field(metadata={"static": True})

    @property
    def shape(self):
        return self.values.shape

    @property
    def dtype(self):
        return np.dtype(np.float32)

    def __eq__(self, other):
        same_scale = isinstance(other, Quantised) and self.scale == other.scale
        # On the host: the devices of the two may have nothing in common.
        return same_scale and np.array_equal(self.values, other.values)

    __hash__ = None


class QuantisedHandler:
    """Stores the numbers as they lie on the devices; the scale is a fact."""

    typestr = "tests.Quantised"

    def accepts(self, value):
        return isinstance(value, Quantised)

    def describe(self, value):
        return {"scale": value.scale}

    def stage(self, value):
        return value.values

    def accepts_target(self, target):
        return isinstance(target, Quantised | jax.ShapeDtypeStruct)

    def want(self, target, facts):
        if isinstance(target, jax.ShapeDtypeStruct):
            # A dtype of the caller would be that of the dequantised numbers.
            return jax.ShapeDtypeStruct(
                target.shape, jnp.int8, sharding=target.sharding
            )
        return target.values

    def place(self, stored, facts, target):
        return Quantised(values=stored, scale=facts["scale"])
