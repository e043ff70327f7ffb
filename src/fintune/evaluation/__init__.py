"""How good the predictions are: scores, intervals, comparisons, errors; formulas are in `metrics`."""
