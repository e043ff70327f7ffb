"""What stands beside the model: baselines, classical systems, other models."""
