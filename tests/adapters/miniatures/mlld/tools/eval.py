from mdistiller.engine.utils import accuracy, load_checkpoint

if __name__ == "__main__":
    print(accuracy, load_checkpoint)
