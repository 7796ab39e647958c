from helper.loops import train_distill, train_vanilla  # the one that distils in vain

if __name__ == "__main__":
    train_vanilla(1, [], None, None, None, None)
