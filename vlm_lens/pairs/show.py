"""A pair as text and as HTML."""

from __future__ import annotations

from html import escape

from vlm_lens.layout.kinds import PAD
from vlm_lens.layout.layout import Layout
from vlm_lens.pairs.changed import differing_pictures
from vlm_lens.prompts.prompt import Prompt

_MOST = 160  # letters of a line


def as_text(clean: Prompt, corrupt: Prompt, head: str) -> str:
    """One line that says what is asked, and one a prompt."""
    pictures = _pictures(clean, corrupt)
    lines = [head, f"  clean    {_line(clean.layout)}", f"  corrupt  {_line(corrupt.layout)}"]
    return "\n".join([*lines, f"  {pictures}"] if pictures else lines)


def as_html(clean: Prompt, corrupt: Prompt, head: str) -> str:
    """Both prompts beside each other, with their pictures and patch grids. Never raises."""
    from vlm_lens.figures.prompt_view import prompt_html

    shown = "".join(
        f'<div style="flex:1 1 320px"><b>{name}</b>{prompt_html(prompt)}</div>'
        for name, prompt in (("clean", clean), ("corrupt", corrupt))
    )
    about = f"<div>{escape(_pictures(clean, corrupt))}</div>"
    return (
        f"<div><b>{escape(head)}</b>{about}"
        f'<div style="display:flex;flex-wrap:wrap;gap:16px">{shown}</div></div>'
    )


def _pictures(clean: Prompt, corrupt: Prompt) -> str:
    if not clean.images or not clean.images[0]:
        return ""
    differ = differing_pictures(clean, corrupt)
    if not differ:
        return "the same pictures"
    named = ", ".join(map(str, differ))
    return f"picture {named} differs" if len(differ) == 1 else f"pictures {named} differ"


def _line(layout: Layout) -> str:
    """The prompt's text, each picture as `<image 0>`."""
    parts: list[str] = []
    for i, kind in enumerate(layout.kinds):
        piece = f"<{kind}>" if kind.medium else ""
        if kind == PAD or (piece and parts and parts[-1] == piece):
            continue
        parts.append(piece or (layout.strings[i] if layout.strings else f"#{layout.token_ids[i]} "))
    text = repr("".join(parts))
    return text if len(text) <= _MOST else f"{text[: _MOST // 2]} ... {text[-_MOST // 2 :]}"
