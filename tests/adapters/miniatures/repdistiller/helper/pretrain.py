import mini


def init(model_s, model_t, init_modules, criterion, train_loader, logger, opt):
    connector = mini.model()
    optimizer = mini.optimizer(connector)
    for epoch in range(1, opt.init_epochs + 1):
        for images, _, index in train_loader:
            optimizer.zero_grad()
            connector(images).square().mean().backward()
            optimizer.step()
            mini.record("init", epoch, index, images)
