"""The demo: a web page with a tab a task, on the same engine as `fintune predict`."""
