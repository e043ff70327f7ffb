"""Serves the model over HTTP: a queue before one model thread, an API of tasks, OpenAI's API, keys."""
