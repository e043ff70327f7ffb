"""The manifest: what earlier versions wrote still reads."""

import json
import shutil

from fintune.models import manifest


def test_an_adapter_trained_when_max_steps_0_meant_whole_epochs_still_loads(random_adapter, tmp_path):
    folder = shutil.copytree(random_adapter, tmp_path / "old")
    raw = json.loads((folder / manifest.NAME).read_text())
    raw["recipe"]["training"]["max_steps"] = 0
    (folder / manifest.NAME).write_text(json.dumps(raw))
    recipe, _ = manifest.read(folder)
    assert recipe.training.max_steps == -1
