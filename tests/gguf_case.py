"""A small Llama as a GGUF file, written with gguf's own writer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants

WIDTH, HEADS, GROUPS, BLOCKS, MLP = 64, 4, 2, 2, 96
LETTERS = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]


def save(path: Path, *, architecture: str = "llama", quantized: bool = True) -> Path:
    """Write the file; matrices are Q4_1 unless they are to stay as they are."""
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    tokens = ["<end>", *LETTERS, "Pa", "is", "ris"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["P a", "i s", "r is"])
    for name in ("bos", "eos", "pad", "unk"):
        getattr(writer, f"add_{name}_token_id")(0)
    drawn = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        value = drawn.standard_normal((rows, columns)).astype(np.float32) * columns**-0.5
        if quantized:
            kind = GGMLQuantizationType.Q4_1
            writer.add_tensor(name, quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)

    def norm(name: str) -> None:
        writer.add_tensor(name, 1 + 0.1 * drawn.standard_normal(WIDTH).astype(np.float32))

    matrix("token_embd.weight", len(tokens), WIDTH)
    norm("output_norm.weight")
    for i in range(BLOCKS):
        norm(f"blk.{i}.attn_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
        size = WIDTH // HEADS
        matrix(f"blk.{i}.attn_q.weight", WIDTH, WIDTH)
        matrix(f"blk.{i}.attn_k.weight", GROUPS * size, WIDTH)
        matrix(f"blk.{i}.attn_v.weight", GROUPS * size, WIDTH)
        matrix(f"blk.{i}.attn_output.weight", WIDTH, WIDTH)
        matrix(f"blk.{i}.ffn_gate.weight", MLP, WIDTH)
        matrix(f"blk.{i}.ffn_up.weight", MLP, WIDTH)
        matrix(f"blk.{i}.ffn_down.weight", WIDTH, MLP)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def embedding(path: Path) -> torch.Tensor:
    """The embedding as gguf itself dequantises it."""
    from gguf import GGUFReader

    (found,) = [t for t in GGUFReader(path).tensors if t.name == "token_embd.weight"]
    return torch.from_numpy(np.array(quants.dequantize(found.data, found.tensor_type)))
