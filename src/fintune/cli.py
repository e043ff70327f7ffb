"""Every command, and how one is run. Nothing heavy is imported before that, so `--help` is quick."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import signal
import sys
import textwrap
from collections.abc import Sequence

from fintune import __version__
from fintune.allocator import let_threads_sleep, use_mimalloc
from fintune.commands import answering, completion, data, exporting, runs, serving, starting, training
from fintune.commands.common import Command, action, apart, json_flag, shown
from fintune.commands.parsing import Parser, underscored
from fintune.errors import DONE, EXIT_CODES, FAILED, FintuneError, Interrupted
from fintune.files import disk_full

COMPUTING = ("run", "plan", "train", "evaluate", "predict", "demo", "live", "serve")


def _doctor_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("-v", "--verbose", action="store_true", help="show every check, one a line")
    json_flag(command)


def _doctor(args: argparse.Namespace) -> int:
    from fintune import doctor

    if not args.json:
        return doctor.run(verbose=args.verbose)
    checks = list(doctor.checks())
    ok = all(check.ok or not check.required for check in checks)
    shown(args, {"ok": ok, "checks": checks})
    return DONE if ok else FAILED


def _completion(args: argparse.Namespace) -> int:
    print(completion.script(parser(), args.shell))
    return DONE


COMMANDS = (
    *starting.COMMANDS,
    *data.COMMANDS,
    *training.COMMANDS,
    *answering.COMMANDS,
    *runs.COMMANDS,
    *serving.COMMANDS,
    *exporting.COMMANDS,
    Command(
        "doctor", "check that this machine and this installation can run fintune", _doctor, _doctor_flags
    ),
    Command(
        "completion", "print the script that lets a shell complete commands", _completion, completion.flags
    ),
)


def parser() -> Parser:
    """The parser of all commands."""
    codes = (
        textwrap.fill(meaning, 78, initial_indent=f"  {code:<4} ", subsequent_indent=" " * 7)
        for code, meaning in EXIT_CODES.items()
    )
    found = Parser(
        prog="fintune",
        description="Fine-tune one LLM with one LoRA adapter on five finance tasks, and use it.",
        epilog="Start with `fintune run --debug`: it takes a minute or two and runs every step.\n\n"
        "exit codes:\n" + "\n".join(codes),
    )
    found.add_argument("--version", action="version", version=f"fintune {__version__}")
    parsers = found.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        flags = action(parsers, command.name, command.help)
        flags.set_defaults(run=command.run)
        if command.add_flags:
            command.add_flags(flags)
    return found


def _quiet() -> None:
    """Keep libraries' notices off the console, where they would drown what matters."""
    import logging
    import warnings

    if "FINTUNE_OFFLINE" in os.environ:
        from fintune.data.raw.download import is_set

        if is_set("FINTUNE_OFFLINE"):
            os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():  # libraries' bars would fill a log; ours decide for themselves
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    logging.basicConfig(format="%(message)s", handlers=[console])
    logging.raiseExceptions = (
        False  # a log that cannot be written, as on a full disk, is no error of the work
    )


def entry(*command: str) -> int:
    """Run `command` and the process's own arguments: what the program and the scripts start with."""
    arguments = [*command, *sys.argv[1:]]
    said = [*(["python", sys.argv[0]] if command else ["fintune"]), *sys.argv[1:]]
    if arguments and arguments[0] in COMPUTING and not {"-h", "--help"} & set(arguments):
        use_mimalloc()
        let_threads_sleep()
    if arguments and arguments[0] in ("run", "train", "evaluate"):
        signal.signal(signal.SIGTERM, _terminate)
    return main(arguments, said)


def _terminate(number: int, frame: object) -> None:
    raise Interrupted("Stopped. What was saved so far is whole.", number=number)


def main(arguments: Sequence[str], said: Sequence[str] = ()) -> int:
    """Run a command; returns its exit code (`errors.EXIT_CODES`).

    Args:
        said: the whole command as it was typed, to be repeated; () is `fintune` with the arguments.
    """
    args = parser().parse_args(underscored(arguments))
    _quiet()
    code = FAILED
    try:
        if getattr(args, "trust_plugins", False):
            from fintune.tasks import plugins

            plugins.trust()
        with apart(args):
            return int(args.run(args))
    except FintuneError as error:
        message, code = str(error), error.code
    except Interrupted as stop:
        if str(stop):  # of the first of several processes
            go_on = stop.command or _again(said or ["fintune", *arguments], stop.flag)
            print(f"\n{stop}\nGo on with:  {go_on}", file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt:
        print("\nInterrupted. What was saved so far is whole.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains when it ends
        return 128 + signal.SIGPIPE
    except Exception as error:
        code, known = FAILED, _explained(error)
        if known is None:
            raise
        message = known
    print(f"fintune: {message}", file=sys.stderr)
    return code


def _again(said: Sequence[str], flag: str) -> str:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return f"the same launch command {f'and {flag}' if flag else 'again'}"
    return shlex.join([*(word for word in said if word != "--overwrite"), flag] if flag else said)


def _explained(error: Exception) -> str | None:
    """A sentence for what libraries raise when the machine, not the program, is at fault; else None."""
    text = str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("fintune"):
        return f"The package {error.name} is not installed: run  fintune doctor, which says what installs it."
    if disk_full(error):
        return f"The disk is full ({text}). What was there before is whole: free some space and run again."
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return f"Could not write ({text}): choose another place, or change its permissions."
    if type(error).__name__ == "OutOfMemoryError":
        return (
            "The GPU's memory is full. Lower training.row_tokens or training.per_device_train_batch_size, "
            "or set training.gradient_checkpointing: true (none of the three changes the loss), "
            "or base_model.load_in_4bit: true."
        )
    return None


if __name__ == "__main__":
    raise SystemExit(entry())
