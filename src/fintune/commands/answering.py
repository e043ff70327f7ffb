"""`fintune evaluate`, `report`, `compare` and `predict`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fintune.commands.common import (
    Command,
    Pairs,
    adapter_of,
    backend_flag,
    count,
    json_flag,
    model_path_flag,
    recipe_flags,
    shown,
    trained_recipe,
)
from fintune.errors import DataError

if TYPE_CHECKING:
    from fintune.data.raw.readers.row_files import RowFile
    from fintune.tasks import Task


def _evaluate_flags(command: argparse.ArgumentParser) -> None:
    model_path_flag(command)
    backend_flag(command)
    command.add_argument(
        "--output_file",
        metavar="JSON",
        help="results file (default: results.json beside the adapter, or here if there is none; "
        "results-validation.json with --split validation)",
    )
    command.add_argument(
        "--split",
        choices=("test", "validation"),
        default="test",
        help="examples to evaluate on; choose among recipes by validation (default: test)",
    )
    command.add_argument(
        "--max_test", type=count, metavar="N", help="evaluate at most N examples of each task"
    )
    command.add_argument("--use_wandb", action="store_true", help="send the figures to Weights & Biases, too")
    command.add_argument(
        "--export_lm_eval",
        metavar="DIR",
        help="evaluate nothing, and write the label tasks for lm-evaluation-harness to this folder",
    )
    json_flag(command)
    recipe_flags(command)


def _report_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("results", metavar="RESULTS", help="results file, or the folder that holds it")
    command.add_argument(
        "--output_file",
        metavar="HTML",
        help="HTML report; the Markdown report goes beside it (default: beside the results)",
    )
    json_flag(command)


def _compare_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "runs",
        nargs="+",
        metavar="RESULTS",
        help="results files, or the folders that hold them; two, or several with --seeds",
    )
    command.add_argument("--task", metavar="TASK", help="compare this task alone")
    command.add_argument("--metric", metavar="METRIC", help="compare this metric alone, such as macro_f1")
    command.add_argument(
        "--seeds", action="store_true", help="show mean and standard deviation over runs of one recipe"
    )
    command.add_argument(
        "--output_file", metavar="FILE", help="write the comparison to a .json or .md file, too"
    )
    json_flag(command)


def _predict_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "text", nargs="?", metavar="TEXT", help="text to answer, or - to read it from standard input"
    )
    command.add_argument(
        "--task", required=True, metavar="TASK", help="task, such as sentiment, headline or qa"
    )
    command.add_argument("--question", metavar="TEXT", help="question on the text, for a qa task")
    command.add_argument(
        "--document",
        action="append",
        metavar="PATH",
        help="answer from a document and show the source: HTML, a filing with inline XBRL, PDF, Markdown, "
        "text, or a folder of them; TEXT is then the question; can be repeated",
    )
    model_path_flag(command)
    backend_flag(command)
    command.add_argument(
        "--input_file",
        metavar="PATH",
        help="CSV, TSV, JSON, Parquet or Excel file with a text column, or a folder of such files, also at "
        "s3:// and the like; or a folder of documents (.txt, .md, .html, .pdf), to answer each",
    )
    command.add_argument(
        "--columns",
        nargs="+",
        action=Pairs,
        metavar="FIELD=COLUMN",
        help="columns of the file, such as text=Headline (default: those of the training file, else text "
        "and question)",
    )
    command.add_argument(
        "--output_file",
        metavar="PATH",
        help="file for the answers: .csv, .tsv or .xlsx with the input's columns, or JSON lines; a path that "
        "ends in / becomes a folder of Parquet files; the same command again continues a stopped run "
        "(default: JSON lines on standard output)",
    )
    command.add_argument("--encoding", metavar="NAME", help="encoding of a text file (default: detected)")
    command.add_argument("--sheet", metavar="NAME", help="sheet of an Excel workbook (default: the first)")
    command.add_argument(
        "--truncate",
        action="store_true",
        help="cut texts that are too long for the model (default: refuse them)",
    )
    command.add_argument(
        "--json",
        action="store_true",
        dest="as_json",  # standard output is not kept for one object: rows are answered as they come
        help="print JSON on a terminal, too: one object for one answer, a line for each row of a file; with "
        "--output_file, an object with the number of answers",
    )
    command.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="answer a file on a Ray cluster: auto or HOST:PORT (without ADDRESS: on this machine)",
    )
    command.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="workers for --ray (default: one a GPU, else one per 4 cores)",
    )


def _evaluate(args: argparse.Namespace) -> int:
    from fintune.data.prepare.dataset import prepare
    from fintune.evaluation.lm_eval import checked_folder, export
    from fintune.evaluation.task_run import drawn
    from fintune.inference import backends
    from fintune.inference.engine import Engine
    from fintune.models.source import Source
    from fintune.pipeline import check_evaluation, evaluate
    from fintune.reports.figures import as_dict, print_table

    model_path = adapter_of(args.model_path)
    recipe = trained_recipe(model_path, args)
    default = Path(model_path or ".") / (
        "results.json" if args.split == "test" else "results-validation.json"
    )
    output = Path(args.output_file or default)
    if args.export_lm_eval:
        checked_folder(args.export_lm_eval)
    else:
        check_evaluation(output, recipe.evaluation.tracked(args.use_wandb))
    backends.check(args.backend, Source.read(model_path, recipe))  # before the data is prepared
    prepared = prepare(recipe)
    engine = Engine.load(model_path, recipe, args.backend)
    if args.export_lm_eval:
        names = [task.name for task in prepared.task_set() if task.name in engine.tasks.names()]
        records = {name: drawn(prepared.records(name, args.split), args.max_test) for name in names}
        tasks = export(engine.tasks, engine.template, records, args.export_lm_eval)
        line = f"lm_eval --include_path {args.export_lm_eval} --tasks {','.join(tasks)} --model hf …"
        shown(args, {"folder": args.export_lm_eval, "tasks": tasks}, lambda: print(line))
        return 0
    config = recipe.evaluation.tracked(args.use_wandb)
    results = evaluate(engine, prepared, config, output, max_test=args.max_test, split=args.split)
    shown(args, as_dict(results), lambda: print_table(results))
    print(f"Results: {output}; to read: {output.with_suffix('.html')} or .md")
    return 0


def _report(args: argparse.Namespace) -> int:
    from fintune.reports.evaluation import write_report

    page = write_report(args.results, args.output_file)
    markdown = page.with_suffix(".md")
    shown(args, {"page": page, "markdown": markdown}, lambda: print(f"Report: {page} and {markdown}"))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from fintune.evaluation import compare
    from fintune.evaluation.runs import Run
    from fintune.files import writable
    from fintune.reports import comparison

    if not args.seeds and len(args.runs) != 2:
        raise DataError(
            f"fintune compare takes two runs, got {len(args.runs)}: name A and B, or add --seeds for several."
        )
    output = writable(args.output_file, (".json", ".md")) if args.output_file else None
    runs = [Run.load(path) for path in args.runs]
    if output and output.resolve() in [run.path.resolve() for run in runs]:
        raise DataError(f"--output_file is {output}, which is one of the results: name another file.")
    compared: compare.Comparison | compare.Spread
    if args.seeds:
        compared = compare.spread(runs, task=args.task, metric=args.metric)
    else:
        compared = compare.compare(*runs, task=args.task, metric=args.metric)
    shown(args, compared, lambda: comparison.print_comparison(compared))
    if output:
        comparison.write(output, compared)
        print(f"Comparison: {output}")
    return 0


def _predict(args: argparse.Namespace) -> int:
    if args.document:
        return _predict_document(args)
    if (args.text is None) == (args.input_file is None):
        raise DataError('Give a text, or else --input_file: fintune predict --task sentiment "…"')
    if (args.ray or args.workers) and not (args.ray and args.input_file):
        raise DataError("--workers belongs to --ray, and --ray to --input_file: give them together.")
    of_file = [name for name in ("columns", "encoding", "sheet") if getattr(args, name)]
    if of_file and not args.input_file:
        raise DataError(f"--{of_file[0]} says how --input_file is read, and none is given.")
    if args.ray and args.backend != "builtin":
        raise DataError(
            f"--backend is {args.backend}, and --ray answers with builtin alone: drop one of them."
        )
    if args.input_file:
        return _predict_file(args)
    from fintune.inference.answers import show
    from fintune.inference.engine import Engine

    text = _standard_input() if args.text == "-" else args.text
    _refuse_file_name(text, args.task)
    engine = Engine.load(adapter_of(args.model_path), backend=args.backend)
    show(engine, args.task, text, args.question, args.truncate)
    return 0


def _predict_document(args: argparse.Namespace) -> int:
    from fintune.data.documents.reading import documents
    from fintune.files import atomic_write, json_line, writable
    from fintune.inference.documents import answer
    from fintune.inference.documents import shown as show
    from fintune.inference.engine import Engine
    from fintune.models.source import Source

    wrong = [name for name in ("input_file", "columns", "ray", "workers") if getattr(args, name)]
    if args.text and args.question:
        wrong.append("question beside a text, which is the question,")
    if wrong:
        raise DataError(f"--{wrong[0]} does not go with --document: drop one of them.")
    output = writable(args.output_file, (".jsonl", ".json")) if args.output_file else None
    found = [document for path in args.document for document in documents(path)]
    model_path, question = adapter_of(args.model_path), args.text or args.question
    _check_question(Source.read(model_path).tasks[args.task], question, "--document", args.document[0])
    engine = Engine.load(model_path, backend=args.backend)
    given = answer(engine, args.task, found, question)
    line = json_line(given.to_dict(args.task))
    if output:
        atomic_write(output, line)
        _written(args, 1, f"The answer, with its sources, is in {output}")
    elif sys.stdout.isatty() and not args.as_json:
        show(given)
    else:
        sys.stdout.write(line)
    return 0


def _predict_documents(args: argparse.Namespace, task: Task, files: list[RowFile]) -> int:
    from fintune.inference.answer_files import Output
    from fintune.inference.documents import predict_files
    from fintune.inference.engine import Engine

    if wrong := next((name for name in ("ray", "columns") if getattr(args, name)), ""):
        raise DataError(f"--{wrong} is for files of rows, and {args.input_file} holds documents: drop it.")
    _check_question(task, args.question, "--input_file", args.input_file)
    output = Output.at(args.output_file, args.input_file) if args.output_file else None
    engine = Engine.load(adapter_of(args.model_path), backend=args.backend)
    _written(args, predict_files(engine, args.task, files, output, args.question))
    return 0


def _check_question(task: Task, question: str | None, flag: str, path: str) -> None:
    """Raise a DataError for a question that is missing, or that the task does not take."""
    if question and "question" not in task.inputs:
        raise DataError(f"{task.name} takes no question: leave «{question}» out, or take --task qa.")
    if not question and "question" in task.inputs:
        raise DataError(
            f'There is no question: fintune predict --task {task.name} {flag} {path} --question "…"'
        )


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"Standard input is not UTF-8: byte {error.start + 1:,} is 0x{error.object[error.start]:02x}. "
            "Convert it first, such as with  iconv -f WINDOWS-1252 -t UTF-8."
        ) from None


def _refuse_file_name(text: str, task: str) -> None:
    """Raise a DataError for a text that names a file: it is the file that shall be answered."""
    named = re.fullmatch(
        r"\S+\.(csv|tsv|jsonl?|ndjson|parquet|xlsx?|txt|md|html?|pdf|docx?|gz|zst)", text, re.I
    )
    is_document = re.search(r"\.(txt|md|html?|pdf)$", text, re.I)
    whole = f"{'--document' if is_document else '- <'} {shlex.quote(text)}"
    with contextlib.suppress(OSError, ValueError):  # too long for a name, or with a NUL
        if named or (os.sep in text and Path(text).exists()) or Path(text).is_file():
            raise DataError(
                f"The text is {text!r}, the name of a file. For an answer to each of its rows:  "
                f"fintune predict --task {task} --input_file {shlex.quote(text)};  "
                f"for one to all of its text:  fintune predict --task {task} {whole}"
            )


def _predict_file(args: argparse.Namespace) -> int:
    from fintune.data.inputs import input_documents
    from fintune.inference.answers import check_files, predict_file
    from fintune.inference.engine import Engine
    from fintune.models.source import Source

    texts = input_documents(args.input_file)  # refuses an absent file before the model is named
    model_path, files = adapter_of(args.model_path), (args.input_file, args.output_file)
    source = Source.read(model_path)
    task = source.tasks[args.task]
    if texts:
        return _predict_documents(args, task, texts)
    reading = {"encoding": args.encoding, "sheet": args.sheet}
    checked = check_files(task, *files, args.columns, source.recipe.columns(args.task), reading)
    for note in (note for part in checked[0] for note in part.notes):
        print(note, file=sys.stderr)  # answers may go to standard output
    if args.ray:
        from fintune.cluster import predict_on_ray

        count = predict_on_ray(
            model_path,
            args.task,
            *files,
            args.truncate,
            args.ray,
            args.workers,
            args.columns,
            reading,
            checked,
        )
    else:
        engine = Engine.load(model_path, backend=args.backend)
        count = predict_file(engine, args.task, *files, args.truncate, args.columns, reading, checked)
    _written(args, count)
    return 0


def _written(args: argparse.Namespace, count: int, line: str = "") -> None:
    """Say how many answers are in `--output_file`; nothing where they went to standard output."""
    from fintune.data.storage import shown as shown_path

    if args.output_file and args.as_json:
        print(json.dumps({"output_file": shown_path(args.output_file), "answers": count}))
    elif args.output_file:
        print(line or f"{count} answers written to {shown_path(args.output_file)}")


COMMANDS = (
    Command(
        "evaluate",
        "score an adapter or an export, beside its baselines",
        _evaluate,
        _evaluate_flags,
    ),
    Command("report", "write the reports of a results file again, without the model", _report, _report_flags),
    Command("compare", "compare two evaluations, or several seeds of one recipe", _compare, _compare_flags),
    Command(
        "predict", "answer one text, a file of texts, or a question on a document", _predict, _predict_flags
    ),
)
