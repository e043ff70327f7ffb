"""The model behind HTTP: one queue before one model thread, an API of tasks, OpenAI's API, keys."""
