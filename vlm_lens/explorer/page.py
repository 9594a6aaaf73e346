"""The explorer's page: one HTML file with its data inside, which fetches nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from vlm_lens.explorer.encode import encode_model
from vlm_lens.explorer.view import ModelView

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_LEAD = (
    "A vision-language model turns a picture into tokens, reads them with the text, and names the "
    "next token. Choose what it is given, and see where it looks, what each block reads, and how "
    "the answer changes when a task is written into it."
)


def explorer_page(views: Sequence[ModelView], *, title: str = "") -> str:
    """The page for some models.

    Args:
        views: What each model did.
        title: The page's title; the models' names by default.

    Returns:
        HTML that needs no other file, no network and no Python.
    """
    names = ", ".join(view.name for view in views)
    told: dict[str, list[str]] = {}
    for view in views:
        told.setdefault(view.about, []).append(view.name)
    footer = " ".join(escape(f"{', '.join(of)}: {about}") for about, of in told.items() if about)
    return filled(
        {"models": [encode_model(view) for view in views]},
        title=title or f"Explorer: {names}",
        footer=f"{footer} Blocks and heads count from 0. The address of this page holds what is "
        "shown: copy it to come back.",
        script="explorer(JSON.parse(document.getElementById('data').textContent), null);",
    )


def filled(
    data: dict[str, Any], *, title: str, footer: str, script: str, policy: str = "",
    asking: str = "",
) -> str:  # fmt: skip
    """The page with its parts filled in.

    Args:
        data: What the page's script draws from.
        title: Plain text.
        footer: HTML.
        script: What starts the page, after the function `explorer` is defined.
        policy: What the page may do beside showing itself, as directives of a content security
            policy.
        asking: A form, as HTML.
    """
    # "<" would end the element that holds the data
    held = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return Template(source("page.html")).substitute(
        title=escape(title),
        heading="What does it see, and what does it answer?",
        lead=_LEAD,
        policy=f"{_POLICY}; {policy}".rstrip("; "),
        style=source("page.css"),
        asking=asking,
        footer=footer,
        data=held,
        script=source("page.js") + script,
    )


def source(name: str) -> str:
    """A file of the page."""
    return (files("vlm_lens.explorer") / name).read_text(encoding="utf-8")
