"""``kcd demo``: plain distillation, condensed distillation and a control on real images."""
