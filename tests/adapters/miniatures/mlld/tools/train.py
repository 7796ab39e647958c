import mini
from mdistiller.engine import trainer_dict
from torch.utils.data import DataLoader

if __name__ == "__main__":
    trainer_dict["base"](mini.model(), DataLoader(mini.Points(), batch_size=16, shuffle=True)).train(1)
