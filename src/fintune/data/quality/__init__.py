"""Describe the prepared data, and find what leaks between its splits."""
