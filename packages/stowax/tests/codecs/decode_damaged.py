"""Decodes damaged payloads, and says how many were refused and how many decoded.

Run by a test in a process of its own: `decode_damaged.py CODEC COUNT`.
"""

import ctypes
import mmap
import struct
import sys
import threading

import numpy as np

from stowax._codecs._compression import BLOSC, CODECS

LIMIT_BYTES = 1 << 18


def guarded():
    """Memory that ends where a page begins that nobody may touch."""
    memory = mmap.mmap(-1, LIMIT_BYTES + mmap.PAGESIZE)
    if sys.platform == "linux":
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        end = ctypes.c_void_p(begin + LIMIT_BYTES)
        assert ctypes.CDLL(None).mprotect(end, mmap.PAGESIZE, 0) == 0
    return memoryview(memory)[:LIMIT_BYTES]


class Damage:
    """Payloads of all sorts, damaged in many ways, by the numbers of a generator."""

    def __init__(self, codec):
        self.random = np.random.default_rng(0)
        self.codec = codec

    def payload(self):
        """Noise, runs, patterns or floats, of lengths around those that matter."""
        random = self.random
        size = int(random.choice([1, 15, 127, 128, 129, 1000, 5000, 70_000]))
        kind = random.integers(4)
        if kind == 0:
            return random.bytes(size)
        if kind == 1:
            return bytes(size)
        if kind == 2:
            piece = np.frombuffer(random.bytes(random.integers(1, 40)), np.uint8)
            return np.resize(piece, size).tobytes()
        return random.standard_normal(size // 4 + 1, np.float32).tobytes()[:size]

    def stored(self, payload):
        """A payload, encoded and damaged."""
        random = self.random
        itemsize = int(random.choice([1, 2, 4, 8, 16]))
        stored = bytearray(self.codec.encode(memoryview(payload), itemsize))
        way = random.integers(6)
        for _ in range(random.integers(1, 5)):
            position = int(random.integers(len(stored)))
            near = position % min(len(stored), 80)
            if way == 0:
                stored[position] ^= 1 << int(random.integers(8))
            elif way == 1:
                stored[near] = int(random.integers(256))
            elif way == 2:
                stored[position] = 255
            elif way == 3:
                number = int(random.choice([0, 1, 16, 1 << 16, 1 << 31, 2**32 - 1]))
                stored[near : near + 4] = struct.pack("<I", number)
            elif way == 4:
                del stored[position : position + int(random.integers(1, 100))]
            else:
                stored[position:position] = random.bytes(random.integers(1, 100))
            stored = stored or bytearray(1)
        if self.codec is BLOSC and len(stored) > 16 and random.random() < 0.8:
            # Headers that pass, so that what is behind them is looked at.
            struct.pack_into("<I", stored, 4, len(payload))
            struct.pack_into("<I", stored, 12, len(stored))
        return stored


def main():
    """Counts what is refused and what is not."""
    codec, count = CODECS[sys.argv[1]], int(sys.argv[2])
    damage, room_in, room_out = Damage(codec), guarded(), guarded()
    refused = 0
    for _ in range(count):
        payload = damage.payload()
        damaged = damage.stored(payload)
        stored = room_in[LIMIT_BYTES - len(damaged) :]
        stored[:] = damaged
        try:
            codec.decode_into(stored, room_out[LIMIT_BYTES - len(payload) :])
        except ValueError:
            refused += 1
    print(refused, count - refused)


if __name__ == "__main__":  # On a thread, as in the engine.
    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
