"""Tests with several real JAX processes."""
