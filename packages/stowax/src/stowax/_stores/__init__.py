"""Where the bytes of a checkpoint live.

`_base` holds the port and what is written over the port alone; every other module is
one kind of store, and the kinds do not know each other. Nothing is imported here, so
that whoever needs only the port gets only the port.
"""
