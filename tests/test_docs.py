"""The documentation: blocks are run or say why not; commands, recipes, links and messages are true."""

import ast
import json
import re
import shlex
import shutil
import textwrap
import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from doors import DOORS

from fintune import cli
from fintune.recipes import recipe_from

markdown = pytest.importorskip("markdown_it", reason="it is not installed: pip install -e '.[demo]'")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HOW = ("run", "test", "source", "why")
LANGUAGES = {"sh", "console", "python", "yaml", "json", "csv", "text"}
MARK = re.compile(
    r"<!-- (?P<page>page )?(?:(?P<run>run)|run by (?P<test>[\w/.]+)|from (?P<source>[\w/.]+)|"
    r"not run: (?P<why>.{8,})|file: (?P<file>[\w.-]+)) -->",
    re.DOTALL,
)
"""Just above a block: `run` (by the last test here), `run by FILE` (another test), `from FILE` (an excerpt
of a file that tests run), or `not run: WHY`. `file: NAME` is written for the blocks that run. With `page`
before it, at a page's top: for all its blocks that have no mark of their own."""


@cache
def blocks():
    """Every code block, in order: page, line, language, text, and the mark above it or at the page's top."""
    found = []
    for path in PAGES:
        marks = SimpleNamespace(page=None, block=None)
        for token in markdown.MarkdownIt("commonmark").parse(path.read_text(encoding="utf-8")):
            if token.type == "html_block":
                match = MARK.fullmatch(token.content.strip())
                marks.block = match.groupdict() if match else None
                if match and match["page"]:
                    marks.page, marks.block = marks.block, None
            elif token.type in ("fence", "code_block"):
                language = token.info.strip()  # "" of an indented block
                mark = marks.block or marks.page or {}
                where = f"{path.relative_to(ROOT)}:{token.map[0] + 1}"
                found.append(
                    SimpleNamespace(path=path, where=where, language=language, text=token.content, mark=mark)
                )
                marks.block = None
            elif not token.type.endswith("_close"):
                marks.block = None
    return found


def commands(block):
    """The command lines of a block as words, each with the output that is shown below it."""
    lines = block.text.replace("\\\n", " ").splitlines()
    shown = []
    for line in lines:
        if block.language == "sh" or line.startswith("$ "):
            shown.append((line.removeprefix("$ "), []))
        elif shown:
            shown[-1][1].append(line)
    parsed = []
    for line, output in shown:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("&|;>"):
                while words and (re.match(r"\w+=", words[0]) or words[0] in ("sudo", "export")):
                    words.pop(0)
                if words:
                    parsed.append((words, output))
                words = []
            else:
                words.append(word)
    return parsed


def arguments(words):
    """The arguments of `fintune` that a command line stands for; None where it is another program's."""
    words = [word.removeprefix(".venv/bin/").removeprefix("$(BIN)/") for word in words]
    if words[0] == "fintune":
        return words[1:]
    door = next((i for i, word in enumerate(words) if word in DOORS), None)
    if door is not None and words[0] in ("python", "accelerate"):
        return [*DOORS[words[door]].split(), *words[door + 1 :]]
    return None


def test_every_block_has_a_language_and_every_command_block_says_what_runs_it():
    faults = []
    for block in blocks():
        mark, what = block.mark, f"{block.where}: {block.text.strip().splitlines()[0]!r}"
        if block.language not in LANGUAGES:
            faults.append(f"{what} has the language {block.language!r}")
        elif block.language in ("sh", "console", "python") and not any(mark.get(k) for k in HOW):
            faults.append(f"{what} is neither run nor says why not")
        elif (named := mark.get("test") or mark.get("source")) and not (ROOT / named).is_file():
            faults.append(f"{what} names {named}, which does not exist")
        elif mark.get("source"):
            own = _flat((ROOT / mark["source"]).read_text(encoding="utf-8"))
            parts = [_flat(part) for part in re.split(r"^ *# …$", block.text, flags=re.MULTILINE)]
            faults += [f"{what}: {mark['source']} has no {part!r}" for part in parts if part not in own]
    assert not faults, "\n".join(faults)


def _flat(code):
    """The lines without indentation: an excerpt may stand elsewhere than in its file."""
    return "\n".join(line.strip() for line in code.strip().splitlines())


def refused(output):
    """Whether a page shows that the command is refused."""
    return any(line.startswith("fintune: ") for line in output)


def test_every_command_of_the_documentation_is_valid(monkeypatch, capsys):
    """Flags and choices by the program's own parser; scripts, targets, extras and recipes exist."""
    taken = []
    stubs = [replace(command, run=lambda args: taken.append(args) or 0) for command in cli.COMMANDS]
    monkeypatch.setattr(cli, "COMMANDS", stubs)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    faults = []
    for block in blocks():
        if block.language not in ("sh", "console"):
            continue
        for words, output in commands(block):
            own = arguments(words)
            fault = None
            if own is not None:
                try:
                    cli.main(own)
                except SystemExit as stopped:
                    said = capsys.readouterr()
                    fault = said.err.strip().splitlines()[-1] if stopped.code else None
                else:
                    fault = None if refused(output) else _wrong_settings(taken[-1])
            elif words[0] == "python" and len(words) > 1 and words[1].endswith(".py"):
                fault = _wrong_script(words[1], words[2:])
            elif words[0] == "make":
                wanted = [word for word in words[1:] if "=" not in word]
                fault = None if set(wanted) <= targets else f"the Makefile has no target {wanted}"
            elif words[0] == "pip":
                asked = {
                    e.strip()
                    for w in words
                    for group in re.findall(r"\[([^\]]+)\]", w)
                    for e in group.split(",")
                }
                unknown = asked - project["optional-dependencies"].keys()
                fault = f"there is no extra {unknown}" if unknown else None
            if fault:
                faults.append(f"{block.where}: {' '.join(words)}\n    {fault}")
    assert len(taken) > 60
    assert not faults, "\n".join(faults)


def _wrong_settings(args):
    """What is wrong with a command's recipe: a file that does not exist, or a key or value."""
    config = str(getattr(args, "config", None) or "")
    if config.startswith("configs/") and not (ROOT / config).is_file():
        return f"there is no {config}"
    changes = [change for change in getattr(args, "set", []) if change != "KEY=VALUE"]
    try:
        recipe_from({}, changes, "the command") if changes else None
    except Exception as error:
        return str(error)
    return None


def _wrong_script(name, words):
    path = ROOT / name
    if not path.is_file():
        return None if "/" not in name else f"there is no {name}"
    sources = [path, *(ROOT / "benchmarks").glob("*.py")] if name.startswith("benchmarks/") else [path]
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    unknown = [word for word in words if word.startswith("--") and f'"{word.split("=")[0]}"' not in text]
    return f"{name} has no {unknown}" if unknown else None


def test_recipes_are_valid_and_python_is_python():
    faults = []
    for block in blocks():
        try:
            if block.language == "python":
                ast.parse(textwrap.dedent(block.text))
            elif block.language == "json":
                json.loads(block.text)
            elif block.language == "yaml" and not block.mark.get("why"):
                recipe_from(yaml.safe_load(block.text), [], block.where)
        except Exception as error:
            faults.append(f"{block.where}: {error}")
    assert not faults, "\n".join(faults)


def test_every_link_leads_to_a_file_that_exists():
    faults = []
    for path in PAGES:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)", text):
            target = "".join(target)
            made = path.parent / target
            if (
                ":" not in target
                and not made.exists()
                and target not in ("changelog.md", "contributing.md", "security.md")
            ):
                faults.append(f"{path.relative_to(ROOT)}: {target}")
    assert not faults, "\n".join(faults)


@cache
def source():
    """The program's text, with strings that go on over several lines put together."""
    files = sorted((ROOT / "src" / "fintune").rglob("*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    return " ".join(re.sub(r"""["']\s*\n\s*f?["']""", "", text).split())


def test_every_message_of_troubleshooting_is_one_that_the_program_gives():
    """A block of text there is a message: between its `…` it holds what the source says, to the letter."""
    quoted = [b for b in blocks() if b.path.name == "troubleshooting.md" and b.language == "text"]
    assert len(quoted) > 15
    faults = []
    for block in quoted:
        message = " ".join(block.text.split())
        pieces = [piece.strip() for piece in message.split("…") if len(piece.strip()) > 3]
        missing = [piece for piece in pieces if piece not in source()]
        if missing or sum(map(len, pieces)) < 15:
            faults.append(f"{block.where}: {missing or 'too little is quoted'}")
    assert not faults, "\n".join(faults)


RUN = sorted({block.path for block in blocks() if block.mark.get("run")})


@pytest.mark.parametrize("path", RUN, ids=lambda path: path.stem)
def test_the_commands_of_a_page_run_as_written(path, tiny_base, random_adapter, workdir, monkeypatch, capfd):
    """In one folder, one after the other, on a tiny base; where a page shows output, it is what came."""
    monkeypatch.setenv("FINTUNE_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("configs", "benchmarks", "pyproject.toml"):
        (workdir / name).symlink_to(ROOT / name)
    shutil.copytree(random_adapter, workdir / "output" / "model")
    for block in [block for block in blocks() if block.path == path]:
        if block.mark.get("file"):
            (workdir / block.mark["file"]).write_text(block.text, encoding="utf-8")
        elif block.mark.get("run") and block.language == "python":
            exec(compile(block.text, block.where, "exec"), {"__name__": "__main__"})
        elif block.mark.get("run"):
            for words, output in commands(block):
                own = arguments(words)
                assert own is not None, f"{block.where}: {words} is no command of fintune: mark it as not run"
                if own[0] in ("train", "run") and not refused(output):
                    tiny = (f"base_model.name={tiny_base}", "training.max_steps=2", "training.max_length=128")
                    own += [part for setting in tiny for part in ("--set", setting)]
                elif own[0] == "evaluate":
                    own += ["--set", "evaluation.baselines=[]"]
                code, said = cli.main(own), capfd.readouterr()
                assert bool(code) == refused(output), (block.where, said.err)
                _shown(block.where, output, said.out + said.err)


def _shown(where, output, said):
    """Each line of `output` came, in this order; `…` stands for anything, at its own line for any lines."""
    lines = iter([" ".join(line.split()) for line in re.split(r"[\r\n]", said)])
    for line in output:
        pattern = re.escape(" ".join(line.split())).replace("…", ".*")
        assert pattern in ("", ".*") or any(re.fullmatch(pattern, came) for came in lines), (
            f"{where}: {line!r}\n{said}"
        )
