"""Dictionaries written as their publishers write them, and what they are to give.

Nothing of vlm_lens is used: the numbers come from numpy, one place at a time.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

D, F, K = 32, 24, 5


def weights(seed: int = 0, d_in: int = D, d_out: int | None = None) -> dict[str, np.ndarray]:
    """Numbers in the field's shapes: w_enc [d, f], w_dec [f, d]."""
    draw = np.random.default_rng(seed)
    d_out = d_out or d_in
    return {
        "w_enc": draw.normal(size=(d_in, F)).astype(np.float32),
        "w_dec": draw.normal(size=(F, d_out)).astype(np.float32),
        "b_enc": draw.normal(size=F).astype(np.float32),
        "b_dec": draw.normal(size=d_out).astype(np.float32),
        "threshold": np.abs(draw.normal(size=F)).astype(np.float32) * 3,
        "skip": draw.normal(size=(d_in, d_out)).astype(np.float32),
    }


def relu(z: np.ndarray) -> np.ndarray:
    return np.where(z > 0, z, 0)


def jump(threshold: np.ndarray):
    return lambda z: np.where(z > threshold, relu(z), 0)


def largest(k: int, signed: bool = False, by_magnitude: bool = False):
    def keep(z: np.ndarray) -> np.ndarray:
        order = np.argsort(-(np.abs(z) if by_magnitude else z))[:k]
        out = np.zeros_like(z)
        out[order] = z[order]
        return out if signed else relu(out)

    return keep


def coded(w: dict[str, np.ndarray], x: np.ndarray, activation, *, centre=False, skip=False):
    """Features and reconstruction of one place after another, in float64."""
    wide = {name: value.astype(np.float64) for name, value in w.items()}
    features, outputs = [], []
    for place in x.astype(np.float64):
        z = (place - wide["b_dec"] if centre else place) @ wide["w_enc"] + wide["b_enc"]
        f = activation(z)
        features.append(f)
        outputs.append(f @ wide["w_dec"] + wide["b_dec"] + (place @ wide["skip"] if skip else 0))
    return np.stack(features), np.stack(outputs)


def _tensors(**arrays: np.ndarray) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in arrays.items()}


def _json(path: Path, **content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def gemma_scope(
    folder: Path, w: dict, *, hook_in: str, hook_out: str | None = None, affine: bool = False
) -> Path:
    """As google/gemma-scope-2-*: `config.json` beside `params.safetensors`."""
    _json(
        folder / "config.json", hf_hook_point_in=hook_in, hf_hook_point_out=hook_out or hook_in,
        width=F, model_name="google/gemma-3-4b-it", architecture="jump_relu", l0=60,
        affine_connection=affine, type="transcoder" if hook_out else "sae",
    )  # fmt: skip
    held = {n: w[n] for n in ("w_enc", "w_dec", "b_enc", "b_dec", "threshold")}
    if affine:
        held["affine_skip_connection"] = w["skip"]
    save_file(_tensors(**held), folder / "params.safetensors")
    return folder


def eleuther(folder: Path, w: dict, *, signed=False, transcode=False, skip=False) -> Path:
    """As `SparseCoder.save_to_disk` of EleutherAI's sparsify."""
    _json(
        folder / "cfg.json", activation="topk", expansion_factor=32, normalize_decoder=True,
        num_latents=F, k=K, multi_topk=False, signed=signed, skip_connection=skip,
        transcode=transcode, d_in=w["w_enc"].shape[0],
    )  # fmt: skip
    held = {"encoder.weight": w["w_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["w_dec"],
            "b_dec": w["b_dec"]}  # fmt: skip
    if skip:
        held["W_skip"] = w["skip"].T
    save_file(_tensors(**held), folder / "sae.safetensors")
    return folder


def saelens(folder: Path, w: dict, architecture: str, *, old=False, skip=False, **cfg) -> Path:
    """As `SAE.save_inference_model` of SAELens; `old`: metadata beside the rest."""
    metadata = {"model_name": "gemma-2-2b", "hook_name": "blocks.1.hook_resid_post",
                "hook_head_index": None, "prepend_bos": True}  # fmt: skip
    metadata |= cfg.pop("metadata", {})
    content = {
        "architecture": architecture, "d_in": w["w_enc"].shape[0], "d_sae": F, "dtype": "float32",
        "device": "cuda", "apply_b_dec_to_input": False, "normalize_activations": "none",
        "reshape_activations": "none", **cfg,
    }  # fmt: skip
    _json(folder / "cfg.json", **content, **(metadata if old else {"metadata": metadata}))
    held = {"W_enc": w["w_enc"], "W_dec": w["w_dec"], "b_enc": w["b_enc"], "b_dec": w["b_dec"]}
    if "jumprelu" in architecture:
        held["threshold"] = w["threshold"]
    if skip:
        held["W_skip"] = w["skip"].T
    save_file(_tensors(**held), folder / "sae_weights.safetensors")
    return folder


def qwen_scope(folder: Path, w: dict, layer: int = 1) -> Path:
    """As Qwen/SAE-Res-*: one file a layer, in the repository's root."""
    folder.mkdir(parents=True, exist_ok=True)
    held = _tensors(W_enc=w["w_enc"].T, W_dec=w["w_dec"].T, b_enc=w["b_enc"], b_dec=w["b_dec"])
    torch.save(held, folder / f"layer{layer}.sae.pt")
    return folder


def circuit_tracer(
    folder: Path, w: dict, layers=(0, 1), *, kind: str = "jump_relu", skip=False, **config
) -> Path:
    """As `TranscoderSet.to_safetensors` of circuit-tracer, beside the config of the Hub's sets.

    Layer `n` has the weights times `1 + n`, so that layers can be told apart.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "model_name": "meta-llama/Llama-3.2-1B", "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in", "feature_output_hook": "mlp.hook_out",
        "scan": "llama-3.2-1b", **config,
    }  # fmt: skip
    lines = [f"{name}: {json.dumps(value)}" for name, value in about.items()]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n")
    for layer in layers:
        held = {"W_enc": w["w_enc"].T, "W_dec": w["w_dec"] * (1 + layer), "b_enc": w["b_enc"],
                "b_dec": w["b_dec"]}  # fmt: skip
        if kind == "jump_relu":
            held["activation_function.threshold"] = w["threshold"]
        if kind == "topk":
            held["k"] = np.array(K)
        if skip:
            held["W_skip"] = w["skip"].T
        save_file(_tensors(**held), folder / f"layer_{layer}.safetensors")
    return folder


def places(n: int = 7, d: int = D) -> np.ndarray:
    return np.random.default_rng(9).normal(size=(n, d)).astype(np.float32)


def check(sae, w: dict, activation, *, d: int = D, centre=False, skip=False) -> None:
    """A loaded dictionary gives what its numbers say."""
    x = places(d=d)
    features, outputs = coded(w, x, activation, centre=centre, skip=skip)
    there = torch.from_numpy(x)
    got = sae.encode(there)
    np.testing.assert_allclose(got.numpy(), features, atol=1e-4)
    np.testing.assert_allclose(sae.decode(got, there).numpy(), outputs, atol=1e-3)
    assert ((got.numpy() != 0) == (features != 0)).all()
    assert 0 < (features != 0).sum() < features.size
