"""A process of its own that writes predictions and feedback: python writer.py URL COUNT NAME."""

import sys

from predictions import add

from fintune.monitoring.store import Store
from fintune.tasks import Prediction

url, count, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
store = Store.open(url, keep=True)
print("ready", flush=True)
sys.stdin.readline()
for i in range(count):
    kept = add(store, "sentiment", f"{name} {i}", Prediction("neutral", {"neutral": 1.0}))
    store.add_feedback(kept, correct=i % 2 == 0, key_id=name)
