"""From shards of pictures to batches for training: reading, cropping, degrading, in an order that can be resumed."""
