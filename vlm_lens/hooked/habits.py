"""What users of TransformerLens type, answered with what it is called here."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import NoReturn, ParamSpec, TypeVar

from vlm_lens.errors import KeywordError, near_matches

P = ParamSpec("P")
R = TypeVar("R")

KEYWORDS = {
    "attention_mask": "pass a mapping with input_ids and attention_mask as the prompt",
    "bwd_hooks": "run with grad=True and use torch.autograd.grad on what the cache holds",
    "clear_contexts": "leave it out: no state is left behind after a run",
    "center_unembed": "leave it out: weights stay as the checkpoint has them",
    "center_writing_weights": "leave it out: weights stay as the checkpoint has them",
    "default_padding_side": "leave it out: batches of prompts are padded on the left",
    "fold_ln": "leave it out: weights stay as the checkpoint has them",
    "fold_value_biases": "leave it out: weights stay as the checkpoint has them",
    "fwd_hooks": "use run_with_hooks, or the context vlm.hooks(fwd_hooks)",
    "first_n_layers": "load the whole model; read the layers that you want with names_filter",
    "freq_penalty": "it is repetition_penalty in transformers",
    "hf_model": "wrap a model that is loaded already: HookedVLM(hf_model, processor)",
    "incl_bwd": "run with grad=True and use torch.autograd.grad on what the cache holds",
    "input": "the prompt is the first argument",
    "layer_names": "it is names_filter",
    "loss_per_token": "take it from the logits: torch.nn.functional.cross_entropy",
    "move_to_device": "it is device",
    "n_devices": "it is device_map in transformers",
    "names": "it is names_filter",
    "padding_side": "leave it out: batches of prompts are padded on the left",
    "past_kv_cache": "generate keeps its own; sweep reuses what variants have in common",
    "pos_slice": "it is positions: a number, a list, or a place, as Last() or Images()",
    "prepend_bos": "it is add_special_tokens of vlm.prompt(text, add_special_tokens=...)",
    "prepend_hooks": "leave it out: they are called in the order given",
    "refactor_factored_attn_matrices": "leave it out: weights stay as the checkpoint has them",
    "remove_batch_dim": "take the row: cache[name][0]",
    "reset_hooks_end": "leave it out: hooks are taken off after every run",
    "return_cache_object": "leave it out: it is always an ActivationCache, which is a mapping",
    "return_type": "runs return logits, and generate a Generation with .tokens and .text",
    "start_at_layer": "patch the residual stream: ActivationPatch('blocks.N.hook_resid_pre', ...)",
    "stop_at_eos": "it is eos_token_id; eos_token_id=None goes on after it",
    "stop_at_layer": "read 'blocks.N.hook_resid_pre' with names_filter; runs go to the end",
    "tokens": "the prompt is the first argument; token ids go as {'input_ids': tokens}",
    "use_past_kv_cache": "it is use_cache in transformers",
    "verbose": "leave it out: generate prints nothing",
}

_WEIGHTS = "weights are the Hugging Face model's own: vlm.hf_model."
_MODULE = "it is the Hugging Face model's: vlm.hf_model.{name}"
ATTRIBUTES = {
    "add_caching_hooks": "use run_with_cache(prompt, names_filter=...)",
    "add_hook": "use run_with_hooks(prompt, fwd_hooks=[(name, fn)]), or the context "
                "vlm.hooks([(name, fn)])",
    "add_perma_hook": "use the context vlm.hooks([(name, fn)])",
    **{name: f"it is vlm.cfg.{name}"
       for name in ("n_layers", "d_model", "n_heads", "n_key_value_heads", "d_head", "d_mlp",
                    "d_vocab")},
    "hidden_size": "it is vlm.cfg.d_model",
    "num_layers": "it is vlm.cfg.n_layers",
    "model": "the Hugging Face model is vlm.hf_model",
    **{name: f"points are vlm.points('{glob}'); modules are in vlm.hf_model"
       for name, glob in (("layers", "blocks.*"), ("vision", "vision.*"),
                          ("vision_tower", "vision.*"), ("projector", "projector.*"),
                          ("language_model", "blocks.*"), ("lm_head", "hook_logits"))},
    "encode": "use vlm.to_tokens(text)",
    "tokenize": "use vlm.to_tokens(text) or vlm.to_str_tokens(text)",
    "decode": "use vlm.to_string(ids)",
    "image_processor": "it is vlm.processor.image_processor",
    "logits": "vlm.run(prompt) gives them",
    "loss": "take it from the logits: torch.nn.functional.cross_entropy",
    "patch": "give ActivationPatch(point, at, value) to interventions=; two prompts: Pair.patch",
    "steer": "give Steer(point, at, vector) to interventions=",
    "ablate": "give Ablate(point, at) to interventions=",
    "lens": "use LogitLens().run(vlm, prompt)",
    "logit_lens": "use LogitLens().run(vlm, prompt)",
    "probe": "use vlm_lens.probes.probe(vlm, data)",
    "get_attention": "use vlm.attention(prompt, at=Last())",
    "blocks": "points are asked by name: vlm.points('blocks.*'); modules are in vlm.hf_model",
    "embed": "read hook_embed with run_with_cache; the module is vlm.hf_model's",
    "forward": "use vlm.run(prompt), or vlm(prompt)",
    "get_token_position": "use prompt.layout.find(token)",
    "hook_dict": "use vlm.points(), a mapping from names to points",
    "hook_points": "use vlm.points(), a mapping from names to points",
    "input_to_embed": "read hook_embed or hook_merged with run_with_cache",
    "loss_fn": "take it from the logits: torch.nn.functional.cross_entropy",
    "mod_dict": "use vlm.points() for points; modules are in vlm.hf_model.named_modules()",
    "remove_all_hook_fns": "there is nothing to remove: hooks are taken off after every run",
    "reset_hooks": "there is nothing to reset: hooks are taken off after every run",
    "set_use_attn_result": "a head's part is attn.hook_z times its slice of the output projection",
    "tokens_to_residual_directions": "take columns of the output layer, vlm.W_U[:, tokens]",
    **{name: _WEIGHTS + "named_parameters()"
       for name in ("b_Q", "b_K", "b_V", "b_O", "W_in", "b_in", "W_out", "b_out", "W_gate")},
    **{name: _MODULE.format(name=name)
       for name in ("cpu", "cuda", "eval", "half", "float", "bfloat16", "modules",
                    "named_modules", "named_parameters", "parameters", "requires_grad_",
                    "state_dict", "to", "train", "training", "zero_grad", "config")},
}  # fmt: skip


CACHE_ATTRIBUTES = {
    "apply_slice_to_batch_dim": "take the row: cache[name][i]",
    "cache_dict": "the cache is a mapping itself: cache[name], cache.items()",
    "compute_head_results": "use cache.stack_head_results()",
    "get_full_resid_decomposition": "use vlm.decompose(prompt, at=..., token=...)",
    "get_neuron_results": "use vlm.decompose(prompt, at=..., token=...)",
    **{name: f"one block's is cache[{name!r}, 3], all blocks' are cache.stack({name!r})"
       for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v",
                    "z", "pattern")},
    "attention": "use cache.stack('pattern'), where names_filter asked for it",
    "prompt": "what stands at each position is in cache.layouts",
    "layout": "it is cache.layouts[row]",
    "logits": "run_with_cache gives them beside the cache",
    "shape": "each activation has its own: cache.to_dataframe()",
    "cpu": "use cache.to('cpu')",
    "has_batch_dim": "it always has one",
    "logit_lens": "use LogitLens().run(vlm, prompt)",
    "model": "a cache holds no model: keep the HookedVLM that read it",
    "remove_batch_dim": "take the row: cache[name][0]",
    "stack_activation": "use cache.stack(kind), as cache.stack('resid_post')",
    "stack_neuron_results": "use vlm.decompose(prompt, at=..., token=...)",
    "toggle_autodiff": "run with grad=True, vlm.run_with_cache(prompt, grad=True)",
}  # fmt: skip


def refuse_keyword(method: str, name: str, takes: list[str]) -> NoReturn:
    """Raises for a keyword that a method does not take.

    Raises:
        KeywordError: Always; with what TransformerLens's keyword is here, or near matches.
    """
    if name in KEYWORDS:
        raise KeywordError(f"{method} takes no {name}=: {KEYWORDS[name]}.")
    raise KeywordError(
        f"{method} takes no {name}=.{near_matches(name, takes)} It takes {', '.join(takes)}."
    )


def answers_habits(method: Callable[P, R]) -> Callable[P, R]:
    """A method that answers a keyword which it does not take with what it is called here."""
    takes = signature(method).parameters
    everything = any(p.kind is Parameter.VAR_KEYWORD for p in takes.values())
    names = [n for n, p in takes.items() if n != "self" and p.kind is not Parameter.VAR_KEYWORD]

    @wraps(method)
    def answering(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in takes and (not everything or name in KEYWORDS):
                refuse_keyword(method.__name__, name, names)
        return method(*args, **kwargs)

    return answering
