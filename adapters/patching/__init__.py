"""``kcd patch`` and ``kcd unpatch``: a marked block in a training script, put in and taken out."""
