def hcl(feature_s, feature_t):
    return (feature_s - feature_t).square().mean()
