"""What the method stands on and knows nothing of it: arrays, other processes, saved states, disks."""
