"""Who wrote a checkpoint, and what its documents say: one module per format."""
