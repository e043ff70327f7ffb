"""Asking the model: the one engine under evaluation, prediction, the demo and serving."""
