"""How good the predictions are: metrics, intervals, baselines, errors, reports."""
