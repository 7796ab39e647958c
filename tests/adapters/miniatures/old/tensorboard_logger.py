class Logger:
    def __init__(self, logdir, flush_secs):
        pass

    def log_value(self, name, value, step):
        pass
