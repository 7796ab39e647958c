"""Selection, permutations and sets of bits. NumPy alone; nothing here knows of distillation."""
