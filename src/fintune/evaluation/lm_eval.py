"""Exports label tasks for EleutherAI's lm-evaluation-harness: an independent check of our accuracy.

Each task becomes `NAME.yaml` over `NAME.parquet`: the prepared test records with the engine's exact prompts,
including chat template and truncation. Like us, lm-eval scores every label followed by the end-of-text
token; its `acc` is our accuracy if labels are scored without normalization or calibration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fintune.errors import DataError
from fintune.files import atomic_folder, atomic_write

if TYPE_CHECKING:
    from fintune.prompts import PromptTemplate
    from fintune.tasks import Record, Task, TaskSet

_TITLE = "# fintune's label tasks for lm-evaluation-harness"
_README = (
    f"{_TITLE}\n"
    """
    lm_eval --include_path {folder} --tasks {names} --model hf \\
        --model_args pretrained=BASE,peft=ADAPTER,dtype=float32

Every task reads the Parquet file beside it by its absolute path: export again after moving the folder. The
column `prompt` is the exact prompt, including the chat template (so do not pass --apply_chat_template), and
`label` the index of the right choice. `acc` equals fintune's accuracy if evaluation.label_normalization and
evaluation.calibration are `none`. If a text contains a control token (<|im_end|>), fintune reads it as plain
text, lm-eval as the token.
"""
)


def export(
    tasks: TaskSet, template: PromptTemplate, records: Mapping[str, Sequence[Record]], folder: str | Path
) -> list[str]:
    """Write the folder, whole or not at all; return lm-eval's names of the exported tasks.

    Args:
        template: the prompt template of the engine to check.
        records: the test records by task; tasks without labels are left out.

    Raises:
        DataError: no task has labels, or `folder` is a file or holds something else.
    """
    folder = checked_folder(folder)
    chosen = [task for task in tasks if task.one_of and records.get(task.name)]
    if not chosen:
        raise DataError(f"None of the tasks {', '.join(records)} has labels: there is nothing to export.")
    with atomic_folder(folder) as staging:
        for task in chosen:
            _write_task(template, task, records[task.name], staging, folder)
        names = [task_name(task.name) for task in chosen]
        atomic_write(staging / "README.md", _README.format(folder=folder, names=",".join(names)))
    return names


def checked_folder(folder: str | Path) -> Path:
    """The absolute path of a folder that may be replaced: new, empty, or an earlier export.

    Raises:
        DataError: the folder is none of these.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise DataError(f"The lm-eval folder is {folder}, which is a file: name a folder.")
    readme = folder / "README.md"
    ours = readme.is_file() and readme.read_text(encoding="utf-8", errors="replace").startswith(_TITLE)
    if folder.is_dir() and any(folder.iterdir()) and not ours:
        raise DataError(
            f"The lm-eval folder is {folder}, which holds something else: name a new folder or an earlier "
            "export."
        )
    return folder


def task_name(task: str) -> str:
    """lm-eval's name of our task."""
    return f"fintune_{task}"


def _write_task(
    template: PromptTemplate, task: Task, records: Sequence[Record], staging: Path, folder: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = task.candidates()
    rows = [
        {
            "id": record.id,
            "text": record.text,
            "prompt": _prompt(template, task, record),
            "label": labels.index(str(record.target)),
        }
        for record in records
    ]
    pq.write_table(pa.Table.from_pylist(rows), staging / f"{task.name}.parquet")
    config: dict[str, Any] = {
        "task": task_name(task.name),
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{task.name}.parquet")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_target": "label",
        "doc_to_choice": [label + template.tokenizer.eos_token for label in labels],
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    atomic_write(staging / f"{task.name}.yaml", text)


def _prompt(template: PromptTemplate, task: Task, record: Record) -> str:
    """The engine's prompt, truncated if it does not fit together with the longest label."""
    room = max(len(template.completion_ids(label)) for label in task.candidates())
    ids, cut = template.prompt_ids(task, record, template.max_length - room)
    return template.tokenizer.decode(ids) if cut else template.prompt_text(task, record)
