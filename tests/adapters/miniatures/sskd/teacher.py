# Only here to be recognised by.
