"""Training data: the index of a corpus, batches, the order of training, texts."""
