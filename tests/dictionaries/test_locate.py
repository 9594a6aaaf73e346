"""Where dictionaries are looked for."""

from __future__ import annotations

import pytest

from dictionaries import written
from vlm_lens.dictionaries import Dictionary, DictionaryError


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(DictionaryError, match="not a Hub id"):
        Dictionary.from_pretrained("no-such-dictionary")
    written.eleuther(tmp_path / "layers.3", written.weights())
    with pytest.raises(DictionaryError, match="below it are layers.3"):
        Dictionary.from_pretrained(tmp_path)
    with pytest.raises(DictionaryError, match="Did you mean 'layers.3'"):
        Dictionary.from_pretrained(tmp_path, "layers.4")
    with pytest.raises(DictionaryError, match="leads out"):
        Dictionary.from_pretrained(tmp_path / "layers.3", "../layers.3")
    with pytest.raises(DictionaryError, match="could not be had from the Hub"):
        Dictionary.from_pretrained("google/gemma-scope-2-4b-it", "resid_post/layer_1")
