"""`fintune export`, `push` and `reproduce`."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fintune.commands.common import (
    Command,
    adapter_of,
    count,
    data_dir_flag,
    json_flag,
    model_path_flag,
    plain,
    shown,
    trust_flag,
)
from fintune.errors import DONE, FAILED, CheckFailed, ConfigError
from fintune.files import read_json

if TYPE_CHECKING:
    from fintune.config import Recipe

ROWS = 200


def _export_flags(command: argparse.ArgumentParser) -> None:
    model_path_flag(command)
    command.add_argument(
        "--format",
        choices=("merged", "gguf", "vllm", "bundle"),
        default="merged",
        help="merged: safetensors with the adapter merged in (default); gguf: a file for llama.cpp and "
        "Ollama; vllm: the adapter for vLLM's server; bundle: all that fintune reproduce needs",
    )
    command.add_argument("--output_dir", required=True, metavar="DIR", help="new folder for the export")
    command.add_argument(
        "--dtype",
        metavar="TYPE",
        help="type of the weights: f16 (default), bf16 or f32; for gguf also q8_0, q5_1, q5_0, q4_1, q4_0 "
        "and, if llama.cpp's llama-quantize is installed, q6_k, q5_k_m, q4_k_m, …",
    )
    command.add_argument(
        "--base",
        action="store_true",
        help="export the base model of --model_path, or of the default recipe, without an adapter",
    )
    command.add_argument(
        "--base_model",
        metavar="NAME",
        help="merge the adapter into these weights of its base, such as the hub's, instead of those it was "
        "trained on",
    )
    command.add_argument(
        "--rows",
        type=count,
        default=ROWS,
        metavar="N",
        help=f"compare adapter and export on N held-out rows of each task (default: {ROWS})",
    )
    command.add_argument("--no_score", action="store_true", help="do not compare adapter and export")
    command.add_argument(
        "--force", action="store_true", help="keep the export even if its answers differ too much"
    )
    json_flag(command)


def _export(args: argparse.Namespace) -> int:
    if args.format == "bundle":
        return _bundle(args)
    from fintune.models.export import export

    recipe, model_path = None, None if args.base and not args.model_path else adapter_of(args.model_path)
    if args.base:
        recipe, model_path = _recipe_of_base(model_path, args.base_model), None
    done = export(model_path, args.output_dir, args.format, args.dtype, recipe, args.base_model)
    if not done.vocabulary:
        print(
            "llama.cpp has no name for this tokenizer, so the GGUF is without a vocabulary: "
            "fintune needs none, other programs do."
        )
    agreement = None
    if not args.no_score and not (args.base and args.dtype is None and args.format == "merged"):
        agreement = _score(args, model_path, recipe)
    shown(args, {"folder": done.folder, "commands": done.commands, "agreement": agreement})
    print(f"Written to {done.folder}: fintune predict --model_path {done.folder} …")
    for command in done.commands:
        print(f"  {command}")
    if args.base:
        print(f"  base_model.name: {done.folder}")
    return 0


def _recipe_of_base(model_path: str | Path | None, name: str | None) -> Recipe:
    from fintune.models import manifest
    from fintune.recipes import default_recipe_path, load_recipe

    recipe = manifest.read_recipe(model_path) if model_path else load_recipe(default_recipe_path())
    return recipe.on_base(name) if name else recipe


def _bundle(args: argparse.Namespace) -> int:
    from fintune.evaluation import bundle
    from fintune.models.export import new_folder
    from fintune.models.source import newest_adapter

    if wrong := next((name for name in ("dtype", "base", "base_model", "force") if getattr(args, name)), ""):
        raise ConfigError(f"--{wrong} does not go with --format bundle, which holds no weights: drop it.")
    target = new_folder(args.output_dir)
    bundle.write(args.model_path or newest_adapter(), target)
    text = f"Written to {target}: fintune reproduce {target} --output_dir again"
    shown(args, {"folder": target, "commands": [], "agreement": None}, lambda: print(text))
    return 0


def _reproduce_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", metavar="BUNDLE", help="folder of fintune export --format bundle")
    command.add_argument("--output_dir", required=True, metavar="DIR", help="new folder for data and adapter")
    command.add_argument(
        "--tolerance",
        type=float,
        default=0.02,
        metavar="X",
        help="how far each metric may differ; a fraction of metrics above 1 (default: 0.02)",
    )
    data_dir_flag(command)
    trust_flag(command)
    json_flag(command)


def _reproduce(args: argparse.Namespace) -> int:
    from fintune.evaluation import bundle
    from fintune.pipeline import reproduce
    from fintune.tasks import plugins

    found = bundle.read(args.bundle)
    plugins.check_trusted(found.recipe.plugins, args.bundle)
    again = reproduce(found, Path(args.output_dir), args.tolerance, args.data_dir)
    text = "Reproduced." if again.same else "Not reproduced: see the lines above."
    shown(args, {"same": again.same, **plain(again)}, lambda: print(text))
    return DONE if again.same else FAILED


def _score(args: argparse.Namespace, model_path: str | Path | None, recipe: Recipe | None) -> dict[str, Any]:
    """Print and keep what the export lost; remove one that lost too much, unless it is forced."""
    from fintune.evaluation import agreement
    from fintune.reports.exports import print_agreement

    folder = Path(args.output_dir)
    found = agreement.measure(model_path, folder, args.rows, recipe)
    written: dict[str, Any] = read_json(found.write())
    print_agreement(found)
    worst = ", ".join(task.task for task in found.tasks if task.verdict == found.verdict)
    if found.verdict == "refuse" and not args.force:
        shutil.rmtree(folder)
        raise CheckFailed(
            f"The export answers otherwise than its adapter ({worst}), and was removed: take --dtype q8_0 "
            "or f16, or keep it with --force."
        )
    if found.verdict != "ok":
        print(
            f"The export differs from its adapter: {worst}. Evaluate it before it is used.", file=sys.stderr
        )
    return written


def _push_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "repo", metavar="REPO", help="repository on the hub, NAME or OWNER/NAME; created if it does not exist"
    )
    model_path_flag(command, "folder of an adapter, or of fintune export (default: the newest under output/)")
    command.add_argument(
        "--public", action="store_true", help="make the repository public (default: private)"
    )
    command.add_argument("--dry_run", action="store_true", help="show files and card, and upload nothing")
    json_flag(command)


def _push(args: argparse.Namespace) -> int:
    from fintune.models import hub
    from fintune.models.source import newest_adapter

    upload = hub.plan(args.model_path or newest_adapter())
    about = {
        "repo": args.repo,
        "public": args.public,
        "bytes": upload.bytes,
        "files": [{"name": path.name, "bytes": path.stat().st_size} for path in upload.files],
        "not_sent": upload.left_out,
        "card": upload.card,
    }
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
        shown(args, {**about, "sent_to": None})
        return 0
    address = hub.push(upload, args.repo, args.public)
    shown(args, {**about, "sent_to": address}, lambda: print(f"Sent to {address}"))
    return 0


COMMANDS = (
    Command("export", "export an adapter with its base, and measure what that loses", _export, _export_flags),
    Command("push", "upload an adapter or an export to the Hugging Face hub", _push, _push_flags),
    Command("reproduce", "train and evaluate from a bundle again, and compare", _reproduce, _reproduce_flags),
)
