"""Draw the pictures and write the tables of the tasks that ship with vlm_lens.

Sources, all of them free to redistribute:

- npm ``flag-icons`` (MIT): the flags, and a second opinion on capitals and continents;
- npm ``countries-list`` (MIT): capitals, continents, currencies and official languages;
- npm ``@iconify-json/noto`` (Apache-2.0): the pictures of animals and foods;
- ``scripts/tasks/facts/*.csv``: which entities are in, and what no package says (Latin names, names
  of the young, colours, flavours, ...), written for this project from general knowledge. In a
  cell with several answers separated by ``|`` the first is the label. ``excluded_flags.csv`` names
  the flags left out because another in the set cannot be told from them.

Usage::

    python -m scripts.tasks.build --npm            # fetches the three packages with `npm pack`
    python -m scripts.tasks.build --packages DIR   # DIR holds flag-icons/, countries-list/, noto/

The result depends on nothing but these inputs: run twice, the tables are the same byte for byte.
Only this script needs ``resvg-py`` and a network; the library reads what it wrote.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FACTS = Path(__file__).resolve().parent / "facts"
TASKS = ROOT / "vlm_lens" / "tasks"
SIZE = 224
VALIDATION_ROWS = 30
COUNTRIES = 130
# Two flags closer than this (root mean square of RGB in 0..1 at 32x24) cannot be told apart by a
# model that sees small patches.
MIN_FLAG_DISTANCE = 0.11
FLAG_BACKGROUND = (200, 200, 200)  # grey: white stripes stay visible
COLUMNS = ("input", "output", "aliases", "image", "split", "source")
NPM_PACKAGES = {
    "flag-icons": "flag-icons@7.5.0",
    "countries-list": "countries-list@3.4.1",
    "noto": "@iconify-json/noto@1.2.9",
}
# countries-list names a few languages after the country.
LANGUAGE_NAMES = {
    "Cambodian": "Khmer",
    "Haitian": "Haitian Creole",
    "Laotian": "Lao",
    "Norwegian Bokmål": "Bokmål",
    "Norwegian Nynorsk": "Nynorsk",
    "Rwandi": "Kinyarwanda",
    "Sinhalese": "Sinhala",
    "Somalia": "Somali",
    "Tagalog / Filipino": "Filipino",
}
OWN_FACTS = "vlm_lens (general knowledge)"


@dataclass(frozen=True)
class Fact:
    """What one task says of one entity: the accepted answers, the first being the label."""

    answers: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Entity:
    """One row of every table of a domain."""

    name: str
    image: str
    facts: dict[str, Fact]


def plain(text: str) -> str:
    """Return the text without accents and with straight apostrophes, as English tables write it."""
    straight = text.replace("ʻ", "'").replace("ł", "l").replace("đ", "d").replace("Ł", "L")
    decomposed = unicodedata.normalize("NFKD", straight)
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def answers(*candidates: str) -> tuple[str, ...]:
    """Return the distinct non-empty candidates, each accented one preceded by its plain form."""
    kept: dict[str, None] = {}
    for candidate in candidates:
        for form in (plain(candidate.strip()), candidate.strip()):
            if form:
                kept.setdefault(form)
    return tuple(kept)


def split_cell(cell: str) -> list[str]:
    """Return the parts of a cell such as ``creamy|smooth``."""
    return [part.strip() for part in cell.split("|") if part.strip()]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def render(svg: str, width: int, height: int, background: tuple[int, int, int]) -> Image.Image:
    """Draw an SVG at the given size on a plain background."""
    data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=width, height=height))
    drawn = Image.open(io.BytesIO(data)).convert("RGBA")
    canvas = Image.new("RGBA", drawn.size, (*background, 255))
    canvas.alpha_composite(drawn)
    return canvas.convert("RGB")


def save_png(picture: Image.Image, path: Path) -> None:
    """Save a picture with a palette of 256 colours, undithered: flat drawings lose nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    palette = picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette.save(path, optimize=True)


# ----------------------------------------------------------------------------------- countries
def draw_flag(svg: str) -> Image.Image:
    """Draw a 4x3 flag at full width, its aspect kept, in the middle of a grey square."""
    height = SIZE * 3 // 4
    canvas = Image.new("RGB", (SIZE, SIZE), FLAG_BACKGROUND)
    canvas.paste(render(svg, SIZE, height, FLAG_BACKGROUND), (0, (SIZE - height) // 2))
    return canvas


def check_flags(flags: dict[str, str]) -> None:
    """Refuse a set with two flags that cannot be told apart."""
    small = {
        code: np.asarray(render(svg, 32, 24, FLAG_BACKGROUND), dtype=np.float64) / 255
        for code, svg in flags.items()
    }
    codes = sorted(small)
    near = [
        f"{a}/{b} ({distance:.3f})"
        for i, a in enumerate(codes)
        for b in codes[i + 1 :]
        if (distance := float(np.sqrt(((small[a] - small[b]) ** 2).mean()))) < MIN_FLAG_DISTANCE
    ]
    if near:
        raise SystemExit(f"flags too close to tell apart: {', '.join(near)}; exclude one of each")


def build_countries(flag_icons: Path, countries_list: Path) -> list[Entity]:
    """Return the country entities and draw their flags."""
    icons = {row["code"]: row for row in json.loads((flag_icons / "country.json").read_text())}
    countries = json.loads((countries_list / "countries.min.json").read_text())
    currencies = json.loads((countries_list / "currencies.min.json").read_text())
    languages = json.loads((countries_list / "languages.min.json").read_text())
    continents = json.loads((countries_list / "continents.min.json").read_text())
    excluded = {row["code"] for row in read_csv(FACTS / "excluded_flags.csv")}
    entities, flags = [], {}
    for row in read_csv(FACTS / "country.csv"):
        code = row["code"]
        if code in excluded:
            raise SystemExit(f"{code} is in country.csv and in excluded_flags.csv")
        country, icon = countries[code.upper()], icons[code]
        flags[code] = (flag_icons / "flags" / "4x3" / f"{code}.svg").read_text()
        save_png(draw_flag(flags[code]), TASKS / "pictures" / "country" / f"{code}.png")

        def source(*overridden: str, row: dict[str, str] = row) -> str:
            own = any(row[column] for column in overridden)
            return "countries-list + vlm_lens" if own else "countries-list"

        currency = currencies[row["currency_code"] or country["currency"][0]]["name"]
        last_word = currency.split()[-1]
        listed = [languages[tag]["name"] for tag in country["languages"]]
        listed = [LANGUAGE_NAMES.get(name, name) for name in listed]
        entities.append(
            Entity(
                name=row["name"] or country["name"],
                image=f"country/{code}.png",
                facts={
                    "country-capital": Fact(
                        answers(
                            row["capital"],
                            country["capital"],
                            icon["capital"],
                            *split_cell(row["capital_aliases"]),
                        ),
                        source("capital", "capital_aliases") + " + flag-icons",
                    ),
                    "country-currency": Fact(
                        answers(
                            last_word[0].upper() + last_word[1:],
                            *split_cell(row["currency_aliases"]),
                        ),
                        source("currency_code", "currency_aliases"),
                    ),
                    "country-continent": Fact(
                        answers(
                            row["continent"],
                            continents[country["continent"]],
                            *split_cell(row["continent_aliases"]),
                        ),
                        source("continent", "continent_aliases"),
                    ),
                    "country-language": Fact(
                        answers(row["language"], *listed, *split_cell(row["language_aliases"])),
                        source("language", "language_aliases"),
                    ),
                },
            )
        )
    check_flags(flags)
    if len(entities) != COUNTRIES:
        raise SystemExit(f"country.csv has {len(entities)} rows, not {COUNTRIES}")
    return entities


# ----------------------------------------------------------------------- animals and foods
class Noto:
    """The Noto emoji as SVG texts."""

    def __init__(self, package: Path) -> None:
        """Read the icon set from an unpacked ``@iconify-json/noto``."""
        self._set = json.loads((package / "icons.json").read_text())

    def svg(self, name: str) -> str:
        """Return an icon as a complete SVG document."""
        alias = self._set.get("aliases", {}).get(name, {})
        icon = self._set["icons"][alias.get("parent", name)]
        width = icon.get("width", self._set.get("width", 16))
        height = icon.get("height", self._set.get("height", 16))
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )


def build_emoji_domain(noto: Noto, domain: str, attributes: Iterable[str]) -> list[Entity]:
    """Return the entities of the animal or the food domain and draw their pictures."""
    entities = []
    folder = TASKS / "pictures" / domain
    for row in read_csv(FACTS / f"{domain}.csv"):
        pictures = {row["icon"]: folder / f"{row['icon']}.png"}
        others = split_cell(row.get("other_pictures") or "")
        pictures |= {other: folder / "alt" / f"{other}.png" for other in others}
        for icon, path in pictures.items():
            save_png(render(noto.svg(icon), SIZE, SIZE, (255, 255, 255)), path)
        facts = {
            f"{domain}-{attribute}": Fact(tuple(split_cell(row[attribute])), OWN_FACTS)
            for attribute in attributes
        }
        entities.append(Entity(row["name"], f"{domain}/{row['icon']}.png", facts))
    return entities


# -------------------------------------------------------------------------------------- tables
def validation_names(domain: str, names: list[str]) -> set[str]:
    """Return the names of the validation split: the 30 whose hash comes first.

    A hash rather than a random generator, so that adding an entity moves at most one other.
    """

    def key(name: str) -> str:
        return hashlib.sha256(f"{domain}/{name}".encode()).hexdigest()

    return set(sorted(names, key=key)[:VALIDATION_ROWS])


def write_tables(domain: str, entities: list[Entity]) -> None:
    """Write one table a task, the rows sorted by name."""
    names = [entity.name for entity in entities]
    if len(set(names)) != len(names):
        raise SystemExit(f"the {domain} facts name an entity twice")
    validation = validation_names(domain, names)
    (TASKS / "tables").mkdir(parents=True, exist_ok=True)
    for task in entities[0].facts:
        with (TASKS / "tables" / f"{task}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for entity in sorted(entities, key=lambda entity: entity.name):
                fact = entity.facts[task]
                if not fact.answers:
                    raise SystemExit(f"no answer for {entity.name!r} in {task}")
                split = "validation" if entity.name in validation else "test"
                label, *aliases = fact.answers
                writer.writerow(
                    (entity.name, label, "|".join(aliases), entity.image, split, fact.source)
                )


def fetch_packages(folder: Path) -> None:
    """Download and unpack the npm packages into ``folder``."""
    for name, spec in NPM_PACKAGES.items():
        packed = subprocess.run(
            ["npm", "pack", "--silent", spec],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        with tarfile.open(folder / packed.stdout.strip().splitlines()[-1]) as archive:
            archive.extractall(folder / f"{name}.unpacked", filter="data")
        (folder / f"{name}.unpacked" / "package").rename(folder / name)


def build(packages: Path) -> None:
    """Build all pictures and tables from a folder of unpacked packages."""
    missing = [name for name in NPM_PACKAGES if not (packages / name).is_dir()]
    if missing:
        raise SystemExit(f"{packages} lacks the unpacked packages {missing}; or pass --npm")
    noto = Noto(packages / "noto")
    domains = {
        "country": build_countries(packages / "flag-icons", packages / "countries-list"),
        "animal": build_emoji_domain(noto, "animal", ("latin", "young", "class", "group")),
        "food": build_emoji_domain(noto, "food", ("color", "flavor", "kind", "texture")),
    }
    for domain, entities in domains.items():
        write_tables(domain, entities)
        sys.stdout.write(f"{domain}: {len(entities)} entities, {len(entities[0].facts)} tasks\n")
    size = sum(path.stat().st_size for path in (TASKS / "pictures").rglob("*.png"))
    sys.stdout.write(f"pictures: {size / 2**20:.2f} MiB\n")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description="Draw the task pictures and write the tables.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--npm", action="store_true", help="fetch the packages with `npm pack`")
    source.add_argument(
        "--packages", type=Path, help="a folder with flag-icons/, countries-list/ and noto/"
    )
    options = parser.parse_args()
    if options.packages:
        build(options.packages)
        return
    with tempfile.TemporaryDirectory() as folder:
        fetch_packages(Path(folder))
        build(Path(folder))


if __name__ == "__main__":
    main()
