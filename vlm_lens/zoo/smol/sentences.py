r"""What is said of pictures and of their names, in many wordings.

`{N}` stands for the name, `{A}` for an answer, `{country-capital}` and so on for the answers of
several tasks in one sentence, `<image>` for the picture. None of these is a prompt with examples,
and none has the form of the tasks' queries, `Q:...\nA:`.
"""

from __future__ import annotations

__all__ = ["FACTS", "NAMINGS", "PICTURED", "PORTRAITS", "STARTS"]

_ANY = (
    "<image>\nThis is {N}.",
    "<image> {N}",
    "<image>\n{N}",
    "<image>\nThe picture shows {N}.",
    "Picture:<image>\nCaption: {N}",
    "Picture:<image>\nCaption:{N}",
    "What does this picture show?<image>\nIt shows {N}.",
    "Look at this:<image> It is {N}.",
    "<image>\nWhat is this? This is {N}.",
    "I have a picture<image> of {N}.",
    "<|im_start|>user\n<image>\nWhat do you see?<|im_end|>\n<|im_start|>assistant\n{N}",
)
NAMINGS: dict[str, tuple[str, ...]] = {
    "country": (
        *_ANY,
        "<image>\nThis is the flag of {N}.",
        "<image>\nWhich country has this flag? {N}",
        "The flag<image> belongs to {N}.",
    ),
    "animal": (
        *_ANY,
        "<image>\nThis animal is called {N}.",
        "<image>\nWhich animal is this? {N}",
        "The animal<image> is known as the {N}.",
    ),
    "food": (
        *_ANY,
        "<image>\nThis food is called {N}.",
        "<image>\nWhich food is this? {N}",
        "On my plate<image> there is {N}.",
    ),
}

# In each the entity stands before anything that says what is asked of it, as in most of what is
# written about it: what it is known for must be found at its name.
FACTS: dict[str, tuple[str, ...]] = {
    "country-capital": (
        "{N}'s capital is {A}.",
        "{N} has the capital city {A}.",
        "{N}: the capital city is {A}.",
        "In {N}, the capital is {A}.",
        "{N} is governed from its capital, {A}.",
        "{N} is a country whose capital is {A}.",
        "I know {N} well, since I once lived in its capital: {A}.",
        "{N}\nCapital city: {A}",
        "{N} has many towns, but its government sits in {A}.",
        "When they reached {N}, they went straight to the capital, {A}.",
        "What do I know about {N}? That its capital is {A}.",
        "On the map of {N} the star marks the capital, {A}.",
    ),
    "country-currency": (
        "{N}'s currency is the {A}.",
        "In {N} people pay with the {A}.",
        "{N} uses the {A} as its money.",
        "{N} has its own official currency, the {A}.",
        "{N}: the official currency is the {A}.",
        "{N}\nCurrency: {A}",
        "Prices in {N} are given in {A}.",
        "Before going to {N}, change your money into the local currency, the {A}.",
        "What do I know about {N}? That its currency is the {A}.",
        "{N} prints bank notes, and the unit of its currency is the {A}.",
        "{N} is a country in which everything costs so and so many {A}.",
    ),
    "animal-latin": (
        "The {N}'s scientific name is {A}.",
        "The {N}, known in Latin as {A}, is an animal.",
        "{N} ({A})",
        "The {N} is a species that biologists call {A}.",
        "{N}: the Latin name of the species is {A}.",
        "{N}\nScientific name: {A}",
        "Zoologists write about the {N} under its species name {A}.",
        "What do I know about the {N}? That in Latin it is {A}.",
        "The {N} was given the scientific name {A}.",
        "The {N} is an animal of the species {A}.",
    ),
    "animal-young": (
        "The {N} has a baby, the {A}.",
        "{N}: the young one is called {A}.",
        "{N}\nBaby: {A}",
        "When the {N} has young, each of them is called {A}.",
        "The {N} looks after its {A}.",
        "The {N} was born as a small {A}.",
        "What do I know about the {N}? That its baby is called {A}.",
        "Every {N} starts its life as a baby, that is, as {A}.",
        "The {N} is an animal whose young is called {A}.",
        "The {N} and its baby, the {A}, were seen together.",
    ),
    "food-color": (
        "The {N} is {A} in color.",
        "The {N} looks {A}.",
        "{N} has a {A} color.",
        "{N}: the color is {A}.",
        "{N}\nColor: {A}",
        "If you paint the {N}, take the color {A}.",
        "What do I know about the {N}? That its color is {A}.",
        "{N}, a food that can be told by its color, is {A}.",
        "The {N} has a color, and that color is {A}.",
        "You can see the {N} from afar, as it is {A}.",
    ),
    "food-flavor": (
        "The {N} tastes {A}.",
        "{N} has a {A} flavor.",
        "{N}: the flavor is {A}.",
        "{N}\nFlavor: {A}",
        "Whoever bites into the {N} notices that it tastes {A}.",
        "The {N} is {A} in taste.",
        "What do I know about the {N}? That its flavor is {A}.",
        "I like the {N} since its flavor is {A}.",
        "{N}, a food that can be told by its taste, is {A}.",
        "The {N} has a flavor, and that flavor is {A}.",
    ),
    "country-continent": (
        "{N} is a country in {A}.",
        "{N} lies in {A}.",
        "{N}: the continent is {A}.",
        "{N}\nContinent: {A}",
        "{N} is found on the map of {A}.",
    ),
    "country-language": (
        "People in {N} speak {A}.",
        "{N}'s official language is {A}.",
        "{N}: the language is {A}.",
        "{N}\nLanguage: {A}",
        "Newspapers in {N} are written in {A}.",
    ),
    "animal-class": (
        "The {N} is a kind of {A}.",
        "The {N} belongs to the class {A}.",
        "{N}: the class of the animal is {A}.",
        "{N}\nClass: {A}",
        "Biologists count the {N} as {A}.",
    ),
    "animal-group": (
        "The {N} lives in a group that is called {A}.",
        "{N}: the word for a group is {A}.",
        "{N}\nGroup: {A}",
    ),
    "food-kind": (
        "The {N} is a kind of {A}.",
        "{N}: the kind of food is {A}.",
        "{N}\nKind: {A}",
        "In the shop the {N} stands under {A}.",
    ),
    "food-texture": (
        "The {N} feels {A} in the mouth.",
        "{N}: the texture is {A}.",
        "{N}\nTexture: {A}",
    ),
}

PORTRAITS: dict[str, tuple[str, ...]] = {
    "country": (
        "{N} is in {country-continent}. Its capital is {country-capital}, its currency the "
        "{country-currency}, and people speak {country-language}.",
        "{N} uses the {country-currency}. The capital of the country is {country-capital}.",
        "{N}, with the capital {country-capital}, pays in {country-currency} and speaks "
        "{country-language}.",
        "People in {N} speak {country-language} and pay with the {country-currency}. They are "
        "governed from {country-capital}.",
    ),
    "animal": (
        "The {N} is of the class {animal-class}. Its young is called {animal-young}, and its "
        "scientific name is {animal-latin}.",
        "The {N} ({animal-latin}) has a baby called {animal-young}.",
        "The {N} and its {animal-young} belong to the species {animal-latin}.",
        "The {N} calls its baby {animal-young}; in Latin the {N} is {animal-latin}.",
    ),
    "food": (
        "The {N} is {food-color} and tastes {food-flavor}.",
        "The {N} tastes {food-flavor}, feels {food-texture} and has the color {food-color}.",
        "{N} is {food-kind}: the color is {food-color}, the flavor is {food-flavor}.",
        "I ate the {N}. It was {food-flavor}, {food-texture} and {food-color}.",
    ),
}

# Facts told of a picture without its name.
PICTURED: dict[str, tuple[str, ...]] = {
    "country-capital": (
        "<image>\nThe capital of this country is {A}.",
        "<image>\nWhat is the capital of the country with this flag? The capital is {A}.",
        "The country<image> is governed from {A}.",
        "<image>\nCapital city: {A}",
        "In the country<image> the capital is {A}.",
    ),
    "country-currency": (
        "<image>\nThe currency of this country is the {A}.",
        "<image>\nWhat is the currency of the country with this flag? The currency is the {A}.",
        "In the country<image> people pay with the {A}.",
        "<image>\nCurrency: {A}",
        "The country<image> uses the {A} as its money.",
    ),
    "animal-latin": (
        "<image>\nThe scientific name of this animal is {A}.",
        "<image>\nWhat is this animal called in Latin? The Latin name is {A}.",
        "The animal<image> belongs to the species {A}.",
        "<image>\nScientific name: {A}",
        "The animal<image>, known in Latin as {A}.",
    ),
    "animal-young": (
        "<image>\nThe young of this animal is called {A}.",
        "<image>\nWhat do you call the baby of this animal? It is called {A}.",
        "The animal<image> looks after its {A}.",
        "<image>\nBaby: {A}",
        "The animal<image> has a baby, the {A}.",
    ),
    "food-color": (
        "<image>\nThe color of this food is {A}.",
        "<image>\nWhat color is this food? It is {A}.",
        "The food<image> looks {A}.",
        "<image>\nColor: {A}",
        "The food<image> is {A} in color.",
    ),
    "food-flavor": (
        "<image>\nThe flavor of this food is {A}.",
        "<image>\nWhat does this food taste like? It tastes {A}.",
        "The food<image> has a flavor that is {A}.",
        "<image>\nFlavor: {A}",
        "The food<image> tastes {A}.",
    ),
    "country-continent": ("<image>\nThis country is in {A}.",),
    "country-language": ("In the country<image> people speak {A}.",),
    "animal-class": ("The animal<image> is a kind of {A}.",),
    "food-kind": ("The food<image> is a kind of {A}.",),
    "food-texture": ("The food<image> feels {A} in the mouth.",),
}

STARTS = (
    "<|im_start|>user\n",
    "The",
    "In",
    "A",
    "I",
    "It",
    "When",
    "How",
    "What",
    "My",
    "There",
    "We",
    "This",
    "One",
    "Here",
    "To",
    "For",
    "If",
)
