"""Dictionaries of features: sparse autoencoders and transcoders, over pictures and in runs."""

from __future__ import annotations

from vlm_lens.dictionaries.dictionary import Dictionary
from vlm_lens.dictionaries.edits import Splice
from vlm_lens.dictionaries.features import FeatureScores
from vlm_lens.dictionaries.fidelity import Fidelity
from vlm_lens.dictionaries.gallery import Gallery
from vlm_lens.dictionaries.locate import shipped
from vlm_lens.dictionaries.value import DictionaryError, DictionaryValue

__all__ = [
    "Dictionary",
    "DictionaryError",
    "DictionaryValue",
    "FeatureScores",
    "Fidelity",
    "Gallery",
    "Splice",
    "shipped",
]
