"""One training by LLaMA-Factory, run by the Python of an environment that has it.

    PYTHON benchmarks/llamafactory_peer.py ROWS_FILE MODEL_FOLDER SETTINGS_AS_JSON

`benchmarks/training.py --llamafactory PYTHON` calls it; it prints examples/s after the first optimizer step
and the peak memory, as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from harness import Clock, answer


def measure(rows: str, model: str, settings: str) -> dict[str, float]:
    import resource

    import torch
    from llamafactory.train.tuner import run_exp

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        examples = json.loads(Path(rows).read_text())
        (Path(folder) / "rows.json").write_text(json.dumps(examples))
        columns = {"prompt": "prompt", "response": "completion", "system": "system"}
        data = {"rows": {"file_name": "rows.json", "columns": columns}}
        (Path(folder) / "dataset_info.json").write_text(json.dumps(data))
        run_exp(
            {
                "stage": "sft",
                "do_train": True,
                "model_name_or_path": model,
                "template": "smollm2",
                "dataset": "rows",
                "dataset_dir": folder,
                "output_dir": f"{folder}/out",
                "finetuning_type": "lora",
                "num_train_epochs": 1,
                "optim": "adamw_torch",
                "lr_scheduler_type": "linear",
                **json.loads(settings),
            },
            callbacks=[clock.callback()],
        )
    gpu = torch.cuda.is_available()
    peak = (
        torch.cuda.max_memory_allocated()
        if gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "examples_per_second": clock.share * len(examples) / clock.seconds(),
        "peak_memory_gib": peak / 2**30,
    }


if __name__ == "__main__":
    answer(lambda: measure(*sys.argv[1:]))
