"""Evaluates predictions: scores, intervals, comparisons, errors; formulas are in `metrics`."""
