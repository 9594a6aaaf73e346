"""Measure the shipped models with plain transformers and plain torch hooks.

    python -m scripts.zoo.evaluate --out zoo_evaluation

writes `zoo_evaluation.json` and `zoo_evaluation.md`: for the six tasks of the paper, accuracy
without context, prompting, patching per layer for every pair of modalities, base language model to
vision-language model, controls, and what the delimiter decodes to after every block.

It uses nothing of the library: neither its hooks nor its metrics are graded by themselves.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

ROOT = Path(__file__).resolve().parents[2] / "vlm_lens"
TASKS = {
    "country-capital": ("capital", "The capital city of the country:"),
    "country-currency": ("currency", "The last word of the official currency of the country:"),
    "animal-latin": ("species", "The scientific name of the animal's species in latin:"),
    "animal-young": ("baby", "The term for the baby of the animal:"),
    "food-color": ("color", "The color of the food:"),
    "food-flavor": ("flavor", "The flavor descriptor of the food:"),
}
NAMES = list(TASKS)
PARTNER = {NAMES[i]: NAMES[i ^ 1] for i in range(6)}
STRANGER = {NAMES[i]: NAMES[(i + 2) % 6] for i in range(6)}
PAIRS = [(s, q) for q in ("text", "image") for s in ("text", "image")]
SHOTS = 5


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    name: str
    output: str
    image: str


def read_table(task: str) -> dict[str, list[Row]]:
    """Read a task's table as rows by split (`val` and `test`)."""
    rows: dict[str, list[Row]] = {"val": [], "test": []}
    with (ROOT / "tasks" / "tables" / f"{task}.csv").open(encoding="utf-8", newline="") as handle:
        for r in csv.DictReader(handle):
            split = "val" if r["split"].startswith("val") else "test"
            rows[split].append(Row(r["input"], r["output"], r["image"]))
    return rows


class Model:
    """A shipped model with its processor; everything it does is one forward pass."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.kind = config["model_type"]
        self.sees = self.kind in ("llava", "idefics2", "fuyu")
        auto = AutoModelForImageTextToText if self.sees else AutoModelForCausalLM
        self.model = auto.from_pretrained(folder).eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.tokenizer = getattr(self.processor, "tokenizer", self.processor)
        inner = self.model.model
        self.inner = {"idefics2": "text_model"}.get(self.kind, "language_model")
        self.inner = getattr(inner, self.inner) if self.sees else inner
        self.layers: nn.ModuleList = self.inner.layers
        norms = ("norm", "final_layernorm")
        self.norm = next(getattr(self.inner, n) for n in norms if hasattr(self.inner, n))
        self._pictures: dict[str, Image.Image] = {}

    def picture(self, name: str) -> Image.Image:
        """Open a picture once."""
        if name not in self._pictures:
            self._pictures[name] = Image.open(ROOT / "tasks/pictures" / name).convert("RGB")
        return self._pictures[name]

    def inputs(self, prompts: Sequence[tuple[str, list[str]]]) -> dict[str, torch.Tensor]:
        """Turn `(text, pictures)` into tensors, padded on the left."""
        if self.kind == "fuyu":
            return self._mantis(prompts)
        texts = [t for t, _ in prompts]
        pictures = [self.picture(p) for _, names in prompts for p in names]
        if self.sees and pictures:
            out = self.processor(text=texts, images=pictures, return_tensors="pt", padding=True)
        else:
            out = self.tokenizer(texts, return_tensors="pt", padding=True)
        wanted = ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask")
        return {k: v for k, v in out.items() if k in wanted}

    def _mantis(self, prompts: Sequence[tuple[str, list[str]]]) -> dict[str, torch.Tensor]:
        """Write prompts as Mantis-Fuyu reads them; transformers' processor takes one picture."""
        rows, patches = [], []
        side = self.model.config.patch_size
        code = self.tokenizer.convert_tokens_to_ids

        def plain(text: str) -> list[int]:
            return self.tokenizer.encode(text, add_special_tokens=False)

        for text, names in prompts:
            *before, last = text.split("<image>")
            ids: list[int] = []
            for number, (piece, name) in enumerate(zip(before, names, strict=True)):
                seen = self.processor.image_processor(self.picture(name), return_tensors="pt")
                pixels = torch.as_tensor(seen["images"][0][0])
                high, wide = pixels.shape[1] // side, pixels.shape[2] // side
                for r in range(high):
                    for c in range(wide):
                        cell = pixels[:, r * side : (r + 1) * side, c * side : (c + 1) * side]
                        patches.append(cell.permute(1, 2, 0).reshape(-1))
                ids += [code("<s>"), *plain(f"{piece}image {number}: "), code("|IMAGE|")]
                ids += ([code("|SPEAKER|")] * wide + [code("|NEWLINE|")]) * high
                ids += [code("|ENDOFIMAGE|")]
            rows.append([*ids, *([code("<s>")] if before else []), *plain(last)])
        length = max(map(len, rows))
        blank = self.tokenizer.pad_token_id
        padded = torch.tensor([[blank] * (length - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows])
        out = {"input_ids": padded, "attention_mask": mask}
        return out | ({"pixel_values": torch.stack(patches)} if patches else {})

    @contextmanager
    def hooked(self, layer: int, hook: Callable) -> Iterator[None]:
        """Hook one block for one run."""
        handle = self.layers[layer].register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def next_tokens(
        self,
        prompts: Sequence[tuple[str, list[str]]],
        layer: int | None = None,
        vector: torch.Tensor | None = None,
        batch: int = 32,
    ) -> list[str]:
        """Decode the greedy next token, with a vector written at the last position if given."""

        def write(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[:, -1] = vector
            return output

        tokens: list[str] = []
        for i in range(0, len(prompts), batch):
            inputs = self.inputs(prompts[i : i + batch])
            if vector is None:
                logits = self.model(**inputs).logits
            else:
                with self.hooked(layer, write):
                    logits = self.model(**inputs).logits
            tokens += [self.tokenizer.decode([t]) for t in logits[:, -1].argmax(-1).tolist()]
        return tokens

    @torch.no_grad()
    def residuals(self, prompts: Sequence[tuple[str, list[str]]], batch: int = 15) -> torch.Tensor:
        """Read embedding and blocks at the last position, `[prompt, point, width]`."""
        parts = []
        for i in range(0, len(prompts), batch):
            inputs = self.inputs(prompts[i : i + batch])
            seen: list[torch.Tensor] = []

            def read(module: nn.Module, args: tuple, output: object, seen: list = seen) -> None:
                if not seen:
                    seen.append(args[0])
                seen.append(output)

            handles = [layer.register_forward_hook(read) for layer in self.layers]
            try:
                self.model(**inputs)
            finally:
                for handle in handles:
                    handle.remove()
            parts.append(torch.stack([s[:, -1] for s in seen], dim=1))
        return torch.cat(parts)

    @torch.no_grad()
    def lens(self, residuals: torch.Tensor) -> torch.Tensor:
        """Decode residuals to probabilities over the vocabulary."""
        return self.model.lm_head(self.norm(residuals)).softmax(-1)


def pair(row: Row, modality: str) -> tuple[str, list[str]]:
    """Write an open question about a row."""
    if modality == "image":
        return "Q:<image>\nA:", [row.image]
    return f"Q:{row.name}\nA:", []


def prompt(
    examples: Sequence[Row], query: Row, example_modality: str, query_modality: str
) -> tuple[str, list[str]]:
    """Write examples and an open query."""
    text, pictures = "", []
    for row in examples:
        question, shown = pair(row, example_modality)
        text += f"{question}{row.output}\n\n"
        pictures += shown
    question, shown = pair(query, query_modality)
    return text + question, pictures + shown


def draw(rows: Sequence[Row], exclude: int, rng: np.random.Generator) -> list[Row]:
    """Draw examples other than one row."""
    others = [i for i in range(len(rows)) if i != exclude]
    return [rows[i] for i in rng.choice(others, SHOTS, replace=False)]


def prompts_of(
    rows: Sequence[Row], examples: str, query: str, rng: np.random.Generator
) -> list[tuple[str, list[str]]]:
    """Write one prompt per row, each with its own examples."""
    return [prompt(draw(rows, i, rng), r, examples, query) for i, r in enumerate(rows)]


def sources_of(
    rows: Sequence[Row], modality: str, rng: np.random.Generator
) -> list[tuple[str, list[str]]]:
    """Write one prompt per row that ends at its last example's delimiter.

    What would follow cannot act on what is read there.
    """
    drawn = [draw(rows, i, rng) for i in range(len(rows))]
    return [prompt(examples[:-1], examples[-1], modality, modality) for examples in drawn]


def accuracy(predictions: Sequence[str], rows: Sequence[Row]) -> float:
    """Return the share of predictions that are a prefix of the label, or the reverse."""
    right = 0
    for prediction, row in zip(predictions, rows, strict=True):
        p, label = prediction.strip(), row.output.strip()
        right += bool(p) and bool(label) and (p.startswith(label) or label.startswith(p))
    return right / len(rows)


def sweep(model: Model, vectors: torch.Tensor, rows: Sequence[Row], modality: str) -> list[float]:
    """Patch every block in turn; `vectors` is `[block, width]`."""
    queries = [pair(r, modality) for r in rows]
    return [
        accuracy(model.next_tokens(queries, layer, vectors[layer]), rows)
        for layer in range(len(model.layers))
    ]


def phases(
    model: Model, task: str, rows: Sequence[Row], modality: str, rng: np.random.Generator
) -> dict:
    """Decode the last delimiter of prompts with examples after every block."""
    read = model.residuals(prompts_of(rows, modality, modality, rng))
    probabilities = model.lens(read)
    mean = probabilities.mean(0)
    first = model.tokenizer.convert_tokens_to_ids(":")
    input_id = int(probabilities[0, 0].argmax())
    word_id = model.tokenizer.convert_tokens_to_ids(TASKS[task][0])
    curves = []
    for i, row in enumerate(rows):
        answer = model.tokenizer.encode(row.output, add_special_tokens=False)[0]
        three = probabilities[i][:, [input_id, word_id, answer]]
        curves.append(three / three.sum(-1, keepdim=True))
    curve = torch.stack(curves).mean(0)
    top = mean.topk(5, dim=-1)
    return {
        "input_token": model.tokenizer.decode([input_id]),
        "input_is_delimiter": input_id == first,
        "curve": [[round(v, 3) for v in point] for point in curve.tolist()],
        "dominant": "".join("ITA"[k] for k in curve.argmax(-1).tolist()),
        "top": [
            [
                f"{model.tokenizer.decode([t])} {p:.2f}"
                for t, p in zip(tokens.tolist(), values.tolist(), strict=True)
            ]
            for tokens, values in zip(top.indices, top.values, strict=True)
        ],
    }


def evaluate(
    llm: Model, vlm: Model, other: Model | None, limit: int, seed: int, progress: Callable
) -> dict:
    """Measure everything.

    Args:
        llm: The base language model.
        vlm: The vision-language model.
        other: A language model of the same shape that the VLM was not made from, if there is one.
        limit: Test rows a task at most.
        seed: Seed of the examples.
        progress: Called with a line of text after each task.

    Returns:
        Per task: numbers and curves.
    """
    tables = {t: read_table(t) for t in TASKS}
    vectors: dict[tuple[str, str, str], torch.Tensor] = {}
    for task, table in tables.items():
        for modality in ("text", "image"):
            rng = np.random.default_rng([seed, NAMES.index(task), 0])
            sources = sources_of(table["val"][:30], modality, rng)
            vectors["vlm", modality, task] = vlm.residuals(sources)[:, 1:].mean(0)
            if modality == "text":
                for name, model in (("llm", llm), ("other", other)):
                    if model is not None:
                        read = model.residuals(sources)[:, 1:].mean(0)
                        vectors[name, modality, task] = read
        for name, model in (("vlm", vlm), ("llm", llm)):
            read = model.residuals([(TASKS[task][1], [])])[0, 1:]
            vectors[name, "instruction", task] = read
    progress("vectors read")

    results = {}
    for task, table in tables.items():
        rows = table["test"][:limit]
        rng = np.random.default_rng([seed, NAMES.index(task), 1])
        out: dict = {"test_rows": len(rows), "patch": {}, "controls": {}, "phases": {}}
        bare = {m: [pair(r, m) for r in rows] for m in ("text", "image")}
        out["no_context"] = {m: accuracy(vlm.next_tokens(bare[m]), rows) for m in bare}
        out["prompt"] = {
            f"{s}->{q}": accuracy(vlm.next_tokens(prompts_of(rows, s, q, rng)), rows)
            for s, q in PAIRS
        }
        out["llm"] = {
            "no_context": accuracy(llm.next_tokens(bare["text"]), rows),
            "prompt": accuracy(llm.next_tokens(prompts_of(rows, "text", "text", rng)), rows),
            "patch": sweep(llm, vectors["llm", "text", task], rows, "text"),
        }
        for query in ("text", "image"):
            for source in ("text", "image", "instruction"):
                out["patch"][f"{source}->{query}"] = sweep(
                    vlm, vectors["vlm", source, task], rows, query
                )
            for source in ("text", "instruction"):
                out["patch"][f"llm {source}->{query}"] = sweep(
                    vlm, vectors["llm", source, task], rows, query
                )
            own = vectors["vlm", "text", task]
            noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(seed))
            noise = noise / noise.norm(dim=-1, keepdim=True) * own.norm(dim=-1, keepdim=True)
            controls = {
                "wrong task, same domain": vectors["vlm", "text", PARTNER[task]],
                "wrong task, other domain": vectors["vlm", "text", STRANGER[task]],
                "random, equal norm": noise,
            }
            if other is not None:
                foreign = vectors["other", "text", task]
                length = own.norm(dim=-1, keepdim=True) / foreign.norm(dim=-1, keepdim=True)
                controls["unrelated LLM, equal norm"] = foreign * length
            for name, vector in controls.items():
                out["controls"][f"{name}->{query}"] = sweep(vlm, vector, rows, query)
            out["phases"][query] = phases(vlm, task, rows[:50], query, rng)
        results[task] = out
        best = {k: f"{max(v):.2f}" for k, v in out["patch"].items()}
        progress(f"{task}: no context {out['no_context']}, prompt {out['prompt']}, best {best}")
    own, base = ([vectors[m, "text", t] for t in TASKS] for m in ("vlm", "llm"))
    grid = torch.stack(
        [torch.stack([torch.cosine_similarity(a, b, dim=-1) for b in base]) for a in own]
    )
    same = torch.eye(6, dtype=torch.bool)
    return {
        "tasks": results,
        "cosine_llm_vlm": {
            "same task": [round(x, 3) for x in grid[same].mean(0).tolist()],
            "other task": [round(x, 3) for x in grid[~same].mean(0).tolist()],
        },
    }


def mean_curve(results: dict, group: str, key: str) -> list[float]:
    """Average a curve over the tasks."""
    return np.mean([r[group][key] for r in results.values()], axis=0).tolist()


def markdown(measured: dict) -> str:
    """Write the tables."""
    results = measured["tasks"]

    def row(name: str, values: Sequence[float]) -> str:
        return f"| {name} | " + " | ".join(f"{v:.2f}" for v in (*values, np.mean(values))) + " |"

    head = f"| | {' | '.join(results)} | mean |\n|---|{'---|' * (len(results) + 1)}"
    lines = ["## No context and prompting", "", head]
    for m in ("text", "image"):
        lines.append(row(f"No Context, {m}", [r["no_context"][m] for r in results.values()]))
    for key in next(iter(results.values()))["prompt"]:
        lines.append(row(f"Prompt {key}", [r["prompt"][key] for r in results.values()]))
    for key in ("no_context", "prompt"):
        lines.append(row(f"base LLM, {key}", [r["llm"][key] for r in results.values()]))
    count = len(next(iter(results.values()))["llm"]["patch"])
    layer_head = "| vector -> query | " + " | ".join(map(str, range(count))) + " |\n|---|"
    layer_head += "---|" * count
    lines += ["", "## Patch accuracy per block, mean over tasks", "", layer_head]
    curves = {"base LLM text->text": np.mean([r["llm"]["patch"] for r in results.values()], 0)}
    for group in ("patch", "controls"):
        for key in next(iter(results.values()))[group]:
            curves[key] = mean_curve(results, group, key)
    curves |= {f"cosine, {k}": v for k, v in measured["cosine_llm_vlm"].items()}
    lines += [f"| {k} | " + " | ".join(f"{x:.2f}" for x in v) + " |" for k, v in curves.items()]
    lines += ["", "## Patch accuracy per task, at the block that is best on average", "", head]
    for key in next(iter(results.values()))["patch"]:
        k = int(np.argmax(curves[key]))
        lines.append(row(f"{key} (block {k})", [r["patch"][key][k] for r in results.values()]))
    lines += ["", "## Phases at the last delimiter", ""]
    lines += ["I input, T task, A answer; the embedding first, then the blocks.", ""]
    lines += ["| task | text | image | input token |", "|---|---|---|---|"]
    for task, r in results.items():
        p = r["phases"]
        token = json.dumps(p["text"]["input_token"])
        lines.append(f"| {task} | {p['text']['dominant']} | {p['image']['dominant']} | `{token}` |")
    lines += ["", "## Top decodings after every block (mean probability)", ""]
    for task, r in results.items():
        for modality, p in r["phases"].items():
            lines += [f"### {task}, {modality}", ""]
            for point, (top, curve) in enumerate(zip(p["top"], p["curve"], strict=True)):
                name = "embedding" if point == 0 else f"block {point - 1}"
                shown = ", ".join(json.dumps(t, ensure_ascii=False) for t in top[:4])
                lines.append(f"- {name}: {shown}; [I, T, A] = {curve}")
            lines.append("")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--llm", type=Path, default=ROOT / "zoo/models/toy-vicuna")
    parser.add_argument("--vlm", type=Path, default=ROOT / "zoo/models/toy-llava")
    parser.add_argument("--other", type=Path, help="an unrelated language model, as a control")
    parser.add_argument("--limit", type=int, default=1000, help="test rows a task at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("zoo_evaluation"))
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(args.threads)

    def progress(line: str) -> None:
        print(line, flush=True)  # noqa: T201

    other = Model(args.other) if args.other else None
    models = (Model(args.llm), Model(args.vlm), other)
    measured = evaluate(*models, args.limit, args.seed, progress)
    args.out.with_suffix(".json").write_text(json.dumps(measured, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(markdown(measured))


if __name__ == "__main__":
    main()
