"""Analyses a system's errors."""
