"""Readers, one per public dataset and one for a user's own file: raw files in, records out.

A reader gets the dataset's files and yields a `Record` for each usable row (its `id` is file and line) and a
`Dropped` for each other row. It sets splits if the dataset has official ones.
"""
