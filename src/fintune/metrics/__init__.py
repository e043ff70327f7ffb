"""Figures of merit: answers and targets in, numbers out. Knows nothing of tasks, models or files."""
