"""Packed rows and fast layers: tensors in, tensors out, each beside its plain reference; no tasks."""
