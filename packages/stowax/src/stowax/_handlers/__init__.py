"""Who saves and loads a checkpointable: one module per handler, and the registry."""
