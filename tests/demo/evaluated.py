"""A results.json beside an adapter, of one task."""

import json


def write_results(folder, created, accuracy, baseline=0.34, **changes):
    """Results of `sentiment`, of an adapter whose manifest says `created`."""
    speed = {"n": 100, "seconds": 1.0, "examples_per_second": 100.0}
    systems = {
        "baseline": {"name": "majority class", "metrics": {"accuracy": baseline}, **speed},
        "adapter": {"name": str(folder), "metrics": {"accuracy": accuracy}, **speed},
    }
    task = {"type": "classification", "headline_metrics": ["accuracy"], "systems": systems}
    content = {
        "format": 2,
        "fintune": "0",
        "created": created,
        "complete": True,
        "seconds": 1.0,
        "model": {"base": "tiny", "adapter": str(folder)},
        "training": {"created": created},
        "data": {"describes": "sample", "folder": "x", "key": "x", "manifest_sha256": "x"},
        "settings": {"split": "test"},
        "versions": {},
        "machine": {},
        "tasks": {"sentiment": task},
        **changes,
    }
    (folder / "results.json").write_text(json.dumps(content))
