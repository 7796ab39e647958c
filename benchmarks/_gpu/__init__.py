"""The parts of `benchmarks/gpu.py`, a module each: ``run(part)`` does what its name says on ``part.device``."""
