"""`fintune export` and `push`."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fintune.commands.common import Command, adapter_of, count, model_path_flag
from fintune.errors import ModelError

if TYPE_CHECKING:
    from fintune.config import Recipe

ROWS = 200


def _export_flags(command: argparse.ArgumentParser) -> None:
    model_path_flag(command)
    command.add_argument(
        "--format",
        choices=("merged", "gguf", "vllm"),
        default="merged",
        help="a folder of safetensors (the default), a GGUF file for llama.cpp and Ollama, or the adapter as "
        "vLLM's server takes it",
    )
    command.add_argument("--output_dir", required=True, metavar="DIR", help="a new folder")
    command.add_argument(
        "--dtype",
        metavar="TYPE",
        help="of the weights: f16 (the default), bf16 or f32; of a GGUF also q8_0, q5_1, q5_0, q4_1, q4_0, "
        "and with llama.cpp's llama-quantize q6_k, q5_k_m, q4_k_m, …",
    )
    command.add_argument(
        "--base",
        action="store_true",
        help="write the base model alone, of --model_path or of the default recipe",
    )
    command.add_argument(
        "--base_model",
        metavar="NAME",
        help="merge the adapter into other weights of its base, such as the hub's, and see what that costs",
    )
    command.add_argument(
        "--rows",
        type=count,
        default=ROWS,
        metavar="N",
        help=f"held-out rows of each task, answered by adapter and export (default: {ROWS})",
    )
    command.add_argument("--no_score", action="store_true", help="compare no answers")
    command.add_argument("--force", action="store_true", help="keep an export that answers otherwise")


def _export(args: argparse.Namespace) -> int:
    from fintune.models import manifest
    from fintune.models.export import export

    recipe, model_path = None, None if args.base and not args.model_path else adapter_of(args.model_path)
    if args.base and model_path:
        recipe, model_path = manifest.read_recipe(model_path), None
    done = export(model_path, args.output_dir, args.format, args.dtype, recipe, args.base_model)
    if not done.vocabulary:
        print(
            "llama.cpp has no name for this tokenizer, so the GGUF is without a vocabulary: "
            "fintune needs none, other programs do."
        )
    if not args.no_score and not (args.base and args.dtype is None and args.format == "merged"):
        _score(args, model_path, recipe)
    backend = " --backend llama.cpp" if args.format == "gguf" else ""
    print(f"Written to {done.folder}: fintune predict{backend} --model_path {done.folder} …")
    for command in done.commands:
        print(f"  {command}")
    if args.base:
        print(f"  base_model.name: {done.folder}")
    return 0


def _score(args: argparse.Namespace, model_path: str | Path | None, recipe: Recipe | None) -> None:
    """Print and keep what the export lost; remove one that lost too much, unless it is forced."""
    from fintune.evaluation import agreement
    from fintune.reports.exports import print_agreement

    folder = Path(args.output_dir)
    found = agreement.measure(model_path, folder, args.rows, recipe)
    found.write()
    print_agreement(found)
    worst = ", ".join(task.task for task in found.tasks if task.verdict == found.verdict)
    if found.verdict == "refuse" and not args.force:
        shutil.rmtree(folder)
        raise ModelError(
            f"The export answers otherwise than its adapter ({worst}), and was removed: take a --dtype of "
            "more bits, or keep it with --force."
        )
    if found.verdict != "ok":
        print(
            f"The export differs from its adapter: {worst}. Evaluate it before it is used.", file=sys.stderr
        )


def _push_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "repo", metavar="REPO", help="on the hub: NAME or OWNER/NAME; made where there is none"
    )
    model_path_flag(command, "the folder of an adapter or of fintune export")
    command.add_argument("--public", action="store_true", help="for everyone to see (default: private)")
    command.add_argument("--dry_run", action="store_true", help="show files and card, and send nothing")


def _push(args: argparse.Namespace) -> int:
    from fintune.models import hub
    from fintune.models.source import newest_adapter

    upload = hub.plan(args.model_path or newest_adapter())
    for path in upload.files:
        print(f"{path.stat().st_size:>14,}  {path.name}")
    print(f"{len(upload.card.encode()):>14,}  README.md")
    if upload.left_out:
        print(f"Not sent: {', '.join(upload.left_out)}")
    if args.dry_run:
        seen = "public" if args.public else "private"
        print(
            f"\n{upload.card}\nNothing was sent. {args.repo} would be {seen}, {upload.bytes / 1e6:,.1f} MB."
        )
        return 0
    print(f"Sent to {hub.push(upload, args.repo, args.public)}")
    return 0


COMMANDS = (
    Command("push", "an adapter, or an export, with its card to the Hugging Face hub", _push, _push_flags),
    Command("export", "an adapter and its base as one model, and what that lost", _export, _export_flags),
)
