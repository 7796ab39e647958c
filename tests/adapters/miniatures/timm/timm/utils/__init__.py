from .checkpoint_saver import CheckpointSaver

__all__ = ["CheckpointSaver"]
