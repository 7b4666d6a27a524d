"""The byte formats: bytes in, bytes out, no I/O, no clock, no device."""
