"""The trainer entry: Megatron's `pretrain` with the competition's arguments, datasets and batches."""
