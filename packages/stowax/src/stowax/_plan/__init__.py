"""Decisions: nothing is touched here and everything is decided.

Pure: no I/O, no device, no clock, no environment.  The same input gives the same plan
in every process of a run, so nobody has to ask anybody.
"""
