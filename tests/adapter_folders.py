"""Folders of adapters, as others may hand them in."""

import hashlib
import json
import shutil

CONFIG, WEIGHTS, MANIFEST = "adapter_config.json", "adapter_model.safetensors", "fintune.json"


def reseal(folder):
    """Let the manifest be of the weights that are there now."""
    raw = json.loads((folder / MANIFEST).read_text())
    raw["weights_sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(raw))


def changed(source, target, config=None, weights=None, manifest=None):
    """A copy of an adapter with other fields, tensors (a function of the old ones) and manifest."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    for name, fields in ((CONFIG, config), (MANIFEST, manifest)):
        raw = json.loads((target / name).read_text())
        (target / name).write_text(json.dumps({**raw, **(fields or {})}))
    if weights:
        save_file(weights(load_file(target / WEIGHTS)), target / WEIGHTS, {"format": "pt"})
        reseal(target)
    return target
