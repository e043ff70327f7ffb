"""Training: the multi-task trainer, its loss, its attention, its callbacks."""
