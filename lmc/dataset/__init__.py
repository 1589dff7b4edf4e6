"""Images in memory: one uint8 tensor with labels for each split, and how batches of them are varied in training."""
