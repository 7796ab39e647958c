"""What several benchmarks share: how figures are reported, and how a run ends."""
