"""What operators watch: metrics, drift, predictions with feedback, and traces."""
