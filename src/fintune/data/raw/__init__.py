"""Where raw data comes from: public datasets, a user's own files, the built-in sample."""
