"""Metrics: answers and targets in, numbers out. Knows no tasks, models or files."""
