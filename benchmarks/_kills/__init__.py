"""The run that kills.py kills."""
