"""Write docs/licences.md: the licences of the packages that fintune asks for, as pip-licenses reads them."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

PAGE = Path(__file__).parents[1] / "docs" / "licences.md"
HEAD = """# Licences of dependencies

This table lists the packages that fintune asks for itself, with the extra that brings each. `make release`
writes it, and puts a list of every package of the environment (an SBOM in CycloneDX form) into `dist/`.
fintune contains no code of these packages. The extra `filings` brings edgartools, and that Unidecode
(GPL 2 or later): leave this extra out where that matters.

| package | version | licence | extra |
|---|---|---|---|
"""


def main() -> None:
    command = [sys.executable, "-m", "piplicenses", "--from=mixed", "--format=json"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    licences = {row["Name"].lower().replace("_", "-"): row for row in found}
    extras: dict[str, set[str]] = {}
    for line in importlib.metadata.requires("fintune") or ():
        wanted = Requirement(line)
        extra = str(wanted.marker).partition('extra == "')[2].rstrip('"')
        extras.setdefault(wanted.name.lower().replace("_", "-"), set()).add(extra or "–")
    rows = [
        f"| {name} | {row['Version']} | {row['License']} | {', '.join(sorted(extras[name]))} |"
        for name in sorted(extras)
        if (row := licences.get(name))
    ]
    absent = sorted(set(extras) - set(licences))
    end = f"\n\nNot installed here: {', '.join(absent)}.\n"
    PAGE.write_text(HEAD + "\n".join(rows) + end, encoding="utf-8")


if __name__ == "__main__":
    main()
