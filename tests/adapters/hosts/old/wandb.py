def init(project):
    pass
