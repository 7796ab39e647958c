"""``kcd run``: KCD inside a training script of somebody else's, which stays as it is."""
