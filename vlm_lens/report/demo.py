"""The report of `vlm-lens demo`: transfer between modalities and its phases, for a newcomer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from vlm_lens.figures.figure_html import figure_html
from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.report.page import Section, data_table, html_table, write_page
from vlm_lens.report.result import provenance_section
from vlm_lens.terms import (
    BEST_TOKEN,
    MEAN,
    NO_CONTEXT,
    PATCH,
    PROMPT,
    RANDOM,
    WRONG_OTHER,
    WRONG_SAME,
    Layer,
    layer_name,
)  # fmt: skip

if TYPE_CHECKING:
    import pandas as pd

    from vlm_lens.lenses import LensResult
    from vlm_lens.recipes import CrossModalPatch, PhaseResult, TransferResult
    from vlm_lens.tasks import Task

__all__ = ["demo_report"]

_PAPER = (
    '<a href="https://arxiv.org/abs/2410.22330">Luo, Darrell and Bar 2025, '
    "Vision-Language Models Create Cross-Modal Task Representations</a>"
)
_GIVEN = {"text": "names", "image": "pictures", "instruction": "an instruction"}
_NEW_TOKENS = 4
_LOGIT, _LATENT = "logit lens", "LatentLens"


def demo_report(
    path: str | Path,
    vlm: HookedVLM,
    recipe: CrossModalPatch,
    transfer: TransferResult,
    phases: Sequence[PhaseResult],
    *,
    commands: Sequence[str] = (),
) -> Path:
    """Writes the report.

    Args:
        path: The HTML file.
        vlm: The HookedVLM, for the example predictions and the lens over a picture.
        recipe: The recipe that gave `transfer`.
        transfer: The result of CrossModalPatch.
        phases: Results of PhaseAnalysis, for example with text and with pictures.
        commands: What to type for the same.

    Returns:
        The file.
    """
    pictures = recipe.query == "image"
    kind = (
        "vision-language model reads text and pictures" if pictures else "language model reads text"
    )
    lead = (
        f'<p class="lead">A {kind}. Shown a few examples of '
        f"a task as {_GIVEN[recipe.source]} (a country and its capital, say), it forms, at one "
        "position of one layer, a list of numbers that stands for the task: a <em>task "
        "vector</em>. Here that vector is copied into a prompt that holds nothing but one of the "
        f"{_GIVEN[recipe.query]}, without examples and without a question. If the model then does "
        "the task, it represents the task in a form that does not depend on "
        f"{'whether it was given in words or in pictures' if pictures else 'the examples'}. "
        f"The experiment is that of {_PAPER}.</p>"
        f'<p class="soft">Model: {escape(vlm.name)}, {vlm.cfg.n_layers} blocks of width '
        f"{vlm.cfg.d_model}. Patched: the output of block {transfer.layer}, counted from 0."
        f"{_about_zoo(vlm)}</p>"
    )
    sections = [_transfer(recipe, transfer), _examples(vlm, recipe, transfer)]
    sections += [_phases(phases)] if phases else []
    sections += [_lens(vlm, recipe)] if pictures else []
    sections.append(provenance_section((transfer, *phases), commands))
    title = f"One task vector{', two modalities' * pictures}: {vlm.name}"
    return write_page(path, title, lead, sections)


def _about_zoo(vlm: HookedVLM) -> str:
    """What a reader must know of a model that was made for demonstration."""
    from vlm_lens import zoo

    if vlm.name not in zoo.names():
        return ""
    return (
        " This is a small model that ships with the package. Planted in it: "
        f"{escape(zoo.planted(vlm.name))}. Numbers of large models are found by running the same "
        "commands on them."
    )


def _transfer(recipe: CrossModalPatch, transfer: TransferResult) -> Section:
    table = data_table(transfer.summary(), mark=lambda row: row["method"] == PATCH)
    before = (
        "the instruction"
        if recipe.source == "instruction"
        else f"{recipe.n_examples} examples of the other rows"
    )
    sweep = "" if transfer.layers.empty else figure_html(transfer.plot_layers())
    body = (
        f"<p><b>{NO_CONTEXT}</b> is the query alone, <b>{PROMPT}</b> puts {before} before it, "
        f"<b>{PATCH}</b> is the query alone with the task vector written at its last position. The "
        "controls write something else there, just as long: the vector of another task, or a "
        "random direction. If the other task's vector makes the model do <em>that</em> task "
        "(“as that task”), the vector carries the task itself.</p>"
        f"<p>{_good_transfer(transfer)}</p>{table}"
        f"<p class='soft'>{'<br>'.join(map(escape, transfer.notes))}</p>"
        f"{figure_html(transfer.plot())}{sweep}"
    )
    return Section("Does the task cross over?", body, "Transfer")


def _good_transfer(transfer: TransferResult) -> str:
    """What a good result looks like, and how near to it this one is."""
    rates = transfer.table.pivot(index="method", columns="task", values="accuracy")
    mean = rates[MEAN]
    good = (
        f"<b>A good result</b>: {PATCH} far above {NO_CONTEXT} and near {PROMPT} or above it, "
        f"above {BEST_TOKEN} too, which is one word said to every query, and the wrong tasks and "
        f"the random vector near zero. Here {PATCH} is right at {mean[PATCH]:.2f} of the queries, "
        f"{NO_CONTEXT} at {mean[NO_CONTEXT]:.2f}, {PROMPT} at {mean[PROMPT]:.2f}"
    )
    must_fail = [name for name in (WRONG_SAME, WRONG_OTHER, RANDOM) if name in mean]
    if must_fail:
        good += f", the highest of these controls at {mean[must_fail].max():.2f}"
    if BEST_TOKEN not in rates.index:
        return f"{good}."
    tasks = rates.columns.drop(MEAN)
    beaten = [t for t in tasks if rates.loc[BEST_TOKEN, t] >= rates.loc[PATCH, t]]
    if not beaten:
        return f"{good}. No task is done as well by one word."
    names = " and ".join([", ".join(beaten[:-1]), beaten[-1]] if beaten[1:] else beaten)
    return f"{good}. Of {escape(names)} this shows little: one word does as well there."


def _examples(vlm: HookedVLM, recipe: CrossModalPatch, transfer: TransferResult) -> Section:
    from vlm_lens.pictures import thumbnail
    from vlm_lens.recipes.parts.scoring import prefix_match

    seed, source = recipe.used_seeds()[0], recipe.source_vlm(vlm)
    answers = transfer.predictions[transfer.predictions["method"] == PATCH]
    lines = []
    for task in recipe.chosen_tasks():
        mine = answers[(answers["task"] == task.name) & (answers["seed"] == seed)]
        shown = [list(mine["correct"]).index(right) for right in (True, False)
                 if right in set(mine["correct"])]  # fmt: skip
        rows = [task.test[i] for i in shown]
        queries = [task.query(row, recipe.query) for row in rows]
        patch = recipe.patch(transfer.layer, recipe.vector(source, task, seed))
        few_shot = recipe.prompts(task, seed)
        prompts = [few_shot[i] for i in shown]
        outputs = [
            _lines(vlm.generate(queries, max_new_tokens=_NEW_TOKENS).text),
            _lines(vlm.generate(prompts, max_new_tokens=_NEW_TOKENS).text),
            _lines(vlm.generate(queries, max_new_tokens=_NEW_TOKENS, interventions=patch).text),
        ]
        for i, row in enumerate(rows):
            query = (
                thumbnail(row.image, height=56, alt=row.input)
                if recipe.query == "image"
                else escape(row.input)
            )
            cells = [f'<td class="text">{escape(task.name)}</td>', f'<td class="text">{query}</td>']
            for texts in outputs:
                right = prefix_match(texts[i], row.answers, ignore_case=recipe.ignore_case)
                kind, tick = ("text right", " ✓") if right else ("text", "")
                cells.append(f'<td class="{kind}">{escape(texts[i]) or "–"}{tick}</td>')
            cells.append(f'<td class="text">{escape(" / ".join(row.answers[:3]))}</td>')
            lines.append(cells)
    head = ("task", "query", NO_CONTEXT, PROMPT, PATCH, "right answer")
    body = (
        f"<p>Of each task the first test row that the patched model gets right, and the first that "
        f"it gets wrong; how often either happens says the table above. Up to {_NEW_TOKENS} "
        "tokens, the most likely one each time, cut at the end of the line; right answers are "
        f"ticked. {_why_wrong(answers, recipe.chosen_tasks())}</p>" + html_table(head, lines)
    )
    return Section("What the model says", body, "Examples")


def _why_wrong(answers: pd.DataFrame, tasks: Sequence[Task]) -> str:
    """How often a wrong answer is the task's own word."""
    words = {task.name: (task.task_word or "").lower() for task in tasks}
    wrong = answers[~answers["correct"]]
    named = [
        bool(said.strip()) and words[task].startswith(said.strip().lower())
        for task, said in zip(wrong["task"], wrong["prediction"], strict=True)
    ]
    if not named:
        return ""
    share = sum(named) / len(named)
    said = f"Of the wrong answers to all test rows {share:.0%} begin with the task's own word"
    if share < 0.1:
        return f"{said}."
    example = escape(next(word for word in words.values() if word))
    return (
        f"{said} (“{example}”, say): there the vector has told the model which task to do, and the "
        "model does not find the answer for this picture."
    )


def _phases(phases: Sequence[PhaseResult]) -> Section:
    drawn = "".join(figure_html(one.plot()) for one in phases)
    told = "".join(
        f"<li>{escape(one.values['task'])}, {escape(one.values['modality'])} examples: "
        f"<code>{one.phases}</code> (I input, T task, A answer; embed first, then each block). "
        f"{_phase_starts(one)} Input token "
        f"{escape(repr(one.values['input_token']))}, task token "
        f"{escape(repr(one.values['task_token']))}.</li>"
        for one in phases
    )
    body = (
        "<p>At the last colon of a prompt with examples the model is about to answer. The logit "
        "lens asks what each layer would say there if it were the last one. Of all tokens three "
        "are followed: what the colon itself decodes to, a word for the task, and the right "
        "answer. Shaded is the one that leads. <b>A good result</b> has all three, in this order, "
        "and each leads clearly for a block or more.</p>"
        f"<ul>{told}</ul><div class='pair'>{drawn}</div>"
    )
    return Section("From input to task to answer", body, "Phases")


def _phase_starts(one: PhaseResult) -> str:
    task, answer = one.task_from, one.answer_from
    first = "No layer is led by the task" if task is None else (
        f"The task leads from {layer_name(task)} on")  # fmt: skip
    second = "the answer does not lead at the end" if answer is None else (
        f"the answer from {layer_name(answer)} on")  # fmt: skip
    return f"{first}, {second}."


def _lens(vlm: HookedVLM, recipe: CrossModalPatch) -> Section:
    from vlm_lens.lenses import Bank, LatentLens, LogitLens, compare_lenses, score_reading
    from vlm_lens.tasks import contents

    tasks = recipe.chosen_tasks()
    row = tasks[0].test[0]
    texts = [task.query(r, "text").text + r.output for task in tasks for r in task]
    prompt = vlm.prompt(tasks[0].query(row, "image"))
    with TemporaryDirectory() as folder:
        bank = Bank.build(vlm, texts, Path(folder) / "bank", progress=False)
        lenses = {_LOGIT: LogitLens(), _LATENT: LatentLens(bank=bank)}
        rows = [r for task in tasks for r in task.test[: 40 // len(tasks)] if len(r.boxes) < 2]
        known = contents(rows)
        scored = score_reading(vlm, known, lenses, progress=False)
        seen = compare_lenses(vlm, prompt, lenses, k=5)
    best = scored.best().set_index("lens").to_dict("index")
    latent, logit = best[_LATENT], best[_LOGIT]
    first = {name: _first_words(seen[name], latent["layer"]) for name in lenses}
    body = (
        f"<p>What stands at each position of the query of {escape(row.input)} "
        f"({escape(tasks[0].name)}), read at every block by two lenses. The logit lens asks which "
        "word the model would say next, were this block the last one. LatentLens asks which word "
        "of a text leaves the most similar state in the same language model, at any of its blocks; "
        f"it knows the words of {len(texts)} short texts, the tasks' own, without a picture.</p>"
        f"<p>Over {len(known)} pictures of test rows, LatentLens has the name of what is shown "
        f"among its five nearest words at {latent['share']:.0%} of the positions after block "
        f"{latent['layer']} (another picture's name at {latent['shuffled']:.0%}), the logit lens "
        f"at {logit['share']:.0%} after block {logit['layer']} ({logit['shuffled']:.0%}). A lens "
        "reads the picture if the first number is far above the second. No word "
        "was ever asked for at a patch in training: what a lens reads there is what the state "
        "resembles, not a caption, and most patches resemble something else. At this picture, "
        f"after block {latent['layer']}, the first words are {first[_LATENT]} for LatentLens and "
        f"{first[_LOGIT]} for the logit lens.</p>"
    )
    if prompt.layout.images[0].grid is not None:
        body += figure_html(seen.plot_image(layer=latent["layer"]))
    body += figure_html(seen[_LATENT].plot()) + figure_html(seen[_LOGIT].plot())
    return Section("What a patch says", body, "Lenses")


def _first_words(seen: LensResult, layer: Layer) -> str:
    """The two words that lead at most positions of the picture."""
    row = seen.rows[0]
    patches = set(row.layout.images[0].positions)
    index = [i for i, p in enumerate(row.positions) if p in patches]
    counted = Counter(seen.top(layer, i)[0][0].strip() for i in index)
    told = [f"{escape(repr(word))} ({n} of {len(index)})" for word, n in counted.most_common(2)]
    return " and ".join(told)


def _lines(texts: Sequence[str]) -> list[str]:
    return [text.strip().partition("\n")[0] for text in texts]
