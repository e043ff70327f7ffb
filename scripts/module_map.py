"""Write docs/modules.md, a line for each module, from the modules' docstrings; `--check` only compares."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "fintune"
PAGE = ROOT / "docs" / "modules.md"
HEAD = """# Modules

One line for each module of `src/fintune`: the first sentence of its docstring. `python scripts/module_map.py`
writes this page; `make lint` checks it. [architecture.md](architecture.md) says how they fit together.
"""


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, on one line; "" where it has none."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`])", paragraph)[0]


def page() -> str:
    """The whole page: a heading for each package, a bullet for each module in it."""
    lines = [HEAD]
    packages = [
        PACKAGE,
        *sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE),
    ]
    for package in packages:
        lines.append(f"\n## `{package.relative_to(PACKAGE.parent).as_posix()}/`\n")
        lines.append(f"{first_sentence(package / '__init__.py')}\n")
        modules = sorted(path for path in package.glob("*.py") if path.name != "__init__.py")
        lines += [f"- `{path.name}`: {first_sentence(path)}" for path in modules]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


if __name__ == "__main__":
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/modules.md differs from the modules' docstrings: run  python scripts/module_map.py")
