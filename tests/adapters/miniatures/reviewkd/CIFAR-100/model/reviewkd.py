def hcl(fs, ft):
    return (fs - ft).square().mean()
