"""Asking the model: one engine behind evaluation, prediction, the demo and serving."""
