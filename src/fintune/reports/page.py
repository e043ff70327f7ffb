"""Makes an HTML page from a template in `assets/` and its values: one file that needs no network.

The pages on evaluation, data quality and drift all come from here, with one style, header and footer. Jinja2
escapes every text from a model, a user or a dataset. The page's Content-Security-Policy allows only the
hashed script that is part of the page, or none if the page needs none.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fintune import __version__
from fintune.evaluation.analysis.errors import shorten
from fintune.reports import figures

ASSETS = Path(__file__).with_name("assets")
STRIP = 132
"""Width of a strip plot, in pixels."""


def make_page(
    template: str, title: str, sections: Sequence[tuple[str, str]], script: str = "", **values: object
) -> str:
    """Render a template that extends `base.html`.

    Args:
        sections: (id, name) of each section, for the navigation.
        script: a script file in `assets/`; "" for a page without one.
        values: what the template shows.
    """
    code = _asset(script) if script else ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    allowed = f" script-src 'sha256-{digest}';" if code else ""
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            sections=sections,
            style=Markup(_asset("style.css")),
            script=Markup(code),
            policy=f"default-src 'none'; style-src 'unsafe-inline';{allowed} img-src data:",
            version=__version__,
            **values,
        )
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        number=figures.number,
        answer=figures.answer_text,
        shorten=shorten,
        percent=figures.percent,
        count="{:,}".format,
        breakable=_breakable,
        bounds=figures.bounds,
        place=_place,
    )
    return environment


def _breakable(text: object) -> Markup:
    """A text whose long names may break after an underscore."""
    return Markup("_<wbr>").join(str(text).split("_"))


def _place(value: float, scale: tuple[float, float]) -> str:
    """A value's position on a strip plot, in pixels; values beyond the scale are placed at its ends."""
    low, high = scale
    return f"{6 + (min(max(value, low), high) - low) / (high - low or 1) * (STRIP - 12):.1f}"
