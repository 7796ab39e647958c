"""Nothing: by this file, too, the repository is known."""
