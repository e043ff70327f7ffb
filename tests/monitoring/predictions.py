"""Puts one prediction into a store, as the service's writer does."""

from fintune.monitoring.store import prediction_row


def add(store, task, text, prediction, **more):
    """The id of the prediction, which is then in the store."""
    row = prediction_row(task, text, prediction, **more)
    store.add_predictions([row])
    return row["id"]
