"""Watching a training script from outside: which model learns, and what it predicts for each batch. See `watcher`."""
