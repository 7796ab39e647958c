"""A DataLoader around the condensed set."""
