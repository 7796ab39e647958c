raise ImportError("Please install DALI")
