"""What leaves are: one module per kind, each a `LeafHandler`."""
