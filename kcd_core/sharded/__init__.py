"""N over many ranks, each of which owns a slice."""
