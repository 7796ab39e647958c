from .trainer import AugTrainer, BaseTrainer

trainer_dict = {"base": BaseTrainer, "ours": AugTrainer}
