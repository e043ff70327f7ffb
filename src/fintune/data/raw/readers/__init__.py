"""One small reader per public dataset, and one for a user's own file: raw files in, records out.

A reader is given the dataset's files and yields a `Record` for a row it can use (its `id` is file and
line) and a `Dropped` for one it cannot. Splits are set where the dataset has official ones.
"""
