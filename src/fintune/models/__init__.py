"""The base model and its adapter: loading, saving, merging and exporting."""
