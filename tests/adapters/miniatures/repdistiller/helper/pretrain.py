import mini


def init(model_s, model_t, init_modules, criterion, train_loader, logger, opt):
    for epoch in range(1, opt.init_epochs + 1):
        for images, _, index in train_loader:
            mini.record("init", epoch, index, images)
