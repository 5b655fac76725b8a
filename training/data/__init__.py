"""Training data: one sample schema, readers, a packed image cache, augmentation and deterministic batches."""
