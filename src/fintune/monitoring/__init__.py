"""Monitoring for operators: metrics, drift, predictions with feedback, and traces."""
