"""The demo: a web page with one tab per task, on the same engine as `fintune predict`."""
