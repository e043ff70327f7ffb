"""Pages and tables for people: evaluation, data quality, drift, the model card."""
