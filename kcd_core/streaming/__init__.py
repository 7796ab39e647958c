"""A stream of ids around the condensed set."""
