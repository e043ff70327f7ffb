"""Training: objectives, optimizer steps, the multi-task trainer, its callbacks and checkpoints."""
