"""``kcd report``: what each stage did, as a page and pictures."""
