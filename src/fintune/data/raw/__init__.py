"""Raw data: public datasets, a user's own files, the built-in sample."""
