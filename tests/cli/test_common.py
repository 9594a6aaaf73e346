"""The options --dtype, --device and --load-in-4bit, as commands take them."""

from __future__ import annotations

import pytest
import torch

from vlm_lens.cli.common import loading
from vlm_lens.errors import ModelError


def test_what_cannot_be_is_refused_before_a_model_is_loaded(tmp_path):
    with pytest.raises(ModelError, match="--dtype float17"):
        loading("float17", None)
    missing = "needs CUDA|needs bitsandbytes"
    with pytest.raises(ModelError, match=missing):
        loading(None, "cpu", load_in_4bit=True)
    assert loading("bfloat16", "cpu") == {"device": "cpu", "dtype": torch.bfloat16}
    assert loading(None, None) == {}
