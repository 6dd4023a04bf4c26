"""Training a network on what is annotated so far."""
