"""The worker of the stand-in: runs requests against models that it loads, without vlm_lens."""

from __future__ import annotations

import json
import sys
import traceback
from functools import cache
from pathlib import Path


class _Missing:
    """Makes this package one that is not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "vlm_lens":
            raise ModuleNotFoundError(f"No module named {name!r} in the service", name=name)


sys.meta_path.insert(0, _Missing())
talk, sys.stdout = sys.stdout, sys.stderr

import torch  # noqa: E402
import zstandard  # noqa: E402
from nnsight.modeling.mixins.remotable import Remotable  # noqa: E402
from nnsight.schema.request import RequestModel  # noqa: E402
from nnsight.tracing import tracer as tracing  # noqa: E402

torch.set_num_threads(1)


@cache
def model_of(key: str) -> Remotable:
    """The model of a key, with its weights."""
    return Remotable.from_model_key(key, dispatch=True)


def run(order: dict) -> None:
    """Runs one request and writes what it saves."""
    model = model_of(order["model_key"])
    model._remoteable_set_env(order["env"])
    objects = model._remoteable_persistent_objects()
    blob = Path(order["request"]).read_bytes()
    tracer = RequestModel.deserialize(blob, objects, order["compress"])
    frame = tracer.info.frame
    tracing.inc()
    try:
        tracer.execute(tracer.info.code)
        saved = tracing._saves()
        result = {name: value for name, value in frame.f_locals.items() if id(value) in saved}
    finally:
        tracing.dec()
    path = Path(order["result"])
    torch.save(result, path)
    if order["compress"]:
        path.write_bytes(zstandard.ZstdCompressor(level=6).compress(path.read_bytes()))


for line in sys.stdin:
    try:
        run(json.loads(line))
        error = ""
    except Exception as problem:  # the client is told
        traceback.print_exc()
        error = f"{type(problem).__name__}: {problem}"
    print(json.dumps({"error": error}), file=talk, flush=True)
