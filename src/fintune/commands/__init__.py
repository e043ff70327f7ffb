"""The commands of `fintune`, by what they are about; `cli.py` puts them together."""
