"""The map between this project's GPT and Hugging Face's: config, names and layout of the weights.

GPT2LMHeadModel is the counterpart of shapes with LayerNorm and learned positions, LlamaForCausalLM
of those with RMSNorm, RoPE and SwiGLU. transformers knows none of muP's multipliers, so they are
folded into the weights, exactly up to rounding: the input's into both embeddings, attention's into
the queries, the residual's into the output projections, the logits' into an untied head or, where
tied, with the input's inverse into the gain of the last norm.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from slm.errors import ImpossiblePoint, UserError
from slm.parametrization import group_of, multipliers
from slm.shape import GPTConfig, padded_vocab

FAMILIES = {"gpt2": "GPT-2", "llama": "Llama"}
ACTIVATIONS = {"gpt2": {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu2": "relu2"},
               "llama": {"swiglu": "silu"}}
SWITCHES = {"gpt2": {"norm": "layernorm", "position": "learned", "qk_norm": False},
            "llama": {"norm": "rmsnorm", "position": "rope", "qk_norm": False}}
# All of them the tanh approximation of GELU, up to rounding.
TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate")


def family(config: GPTConfig) -> str:
    """'gpt2' or 'llama': the architecture of transformers that computes what this shape does.
    Raises UserError that names what has no counterpart in the nearest of the two."""
    strange = {}
    for name, switches in SWITCHES.items():
        wrong = [f"model.{key}={getattr(config, key)} (it has {value or 'none'})"
                 for key, value in switches.items() if getattr(config, key) != value]
        if config.activation not in ACTIVATIONS[name]:
            wrong.append(f"model.activation={config.activation} (it has "
                         f"{' or '.join(ACTIVATIONS[name])})")
        strange[name] = wrong
    nearest = min(strange, key=lambda name: len(strange[name]))
    if strange[nearest]:
        raise UserError("no architecture of transformers computes this shape; in the nearest, "
                        f"{FAMILIES[nearest]}, these have no counterpart: "
                        + ", ".join(strange[nearest]))
    return nearest


def hf_config(config: GPTConfig) -> dict[str, Any]:
    """config.json of the counterpart. Raises UserError where there is none."""
    c, name = config, family(config)
    common = {"vocab_size": c.vocab_size, "tie_word_embeddings": c.tied, "torch_dtype": "float32",
              "initializer_range": c.init_std, "model_type": name}
    if name == "gpt2":
        return {"architectures": ["GPT2LMHeadModel"], **common, "n_layer": c.n_layer,
                "n_head": c.n_head, "n_embd": c.n_embd, "n_positions": c.block_size,
                "n_inner": c.d_ff, "activation_function": ACTIVATIONS[name][c.activation],
                "layer_norm_epsilon": 1e-5, "resid_pdrop": c.dropout, "embd_pdrop": c.dropout,
                "attn_pdrop": c.dropout}
    return {"architectures": ["LlamaForCausalLM"], **common, "num_hidden_layers": c.n_layer,
            "num_attention_heads": c.n_head, "num_key_value_heads": c.n_head,
            "head_dim": c.head_size, "hidden_size": c.n_embd, "intermediate_size": c.d_ff,
            "max_position_embeddings": c.block_size, "hidden_act": "silu", "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0, "attention_bias": c.bias, "mlp_bias": c.bias,
            "attention_dropout": c.dropout}


def folded(state: dict[str, Tensor], config: GPTConfig, power: int = 1) -> dict[str, Tensor]:
    """Weights that give without multipliers the logits that `state` gives with them; power=-1:
    the other way round.

    state: with a gain, ones where the model has none, under 'ln_f.weight'. Factors of 1 touch
    nothing, so that sp is copied bitwise."""
    factor = multipliers(config)
    query = factor.attention / config.head_size ** -0.5
    last = "ln_f." if config.tied else "lm_head."
    last_factor = factor.logits / (factor.embedding if config.tied else 1.0)
    out = {}
    for name, p in state.items():
        p = p.clone()
        if group_of(name) == "embedding" and factor.embedding != 1:
            p *= factor.embedding ** power
        elif ".c_attn." in name and query != 1:
            p[:config.n_embd] *= query ** power              # rows of the queries
        elif ".c_proj." in name and factor.residual != 1:
            p *= factor.residual ** power
        elif name.startswith(last) and last_factor != 1:
            p *= last_factor ** power
        out[name] = p
    return out


def to_hf(config: GPTConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The counterpart's weights under its names. state: of GPT(config); what it has no parameter
    for (biases of bias=False, gains of its RMSNorm) becomes zeros and ones. A tied head is left
    out, as transformers does. Raises UserError where there is no counterpart."""
    name, d = family(config), config.n_embd
    norms = [f"h.{i}.ln_{j}" for i in range(config.n_layer) for j in (1, 2)] + ["ln_f"]
    gains = {f"{n}.weight": torch.ones(d) for n in norms}
    full = folded(gains | state, config)
    out = (_to_gpt2 if name == "gpt2" else _to_llama)(config, full)
    if not config.tied:
        out["lm_head.weight"] = full["lm_head.weight"]
    return {n: p.contiguous().float() for n, p in out.items()}


def _to_gpt2(config: GPTConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, p in state.items():
        if name != "lm_head.weight":
            out[f"transformer.{name}"] = p.T if _is_conv1d(name) else p
            if name.endswith(".weight") and group_of(name) != "embedding" and not config.bias:
                bias = name.removesuffix("weight") + "bias"
                out[f"transformer.{bias}"] = torch.zeros(p.shape[0])
    return out


def _to_llama(config: GPTConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {"model.embed_tokens.weight": state["wte.weight"],
           "model.norm.weight": state["ln_f.weight"]}
    for i in range(config.n_layer):
        ours, theirs = f"h.{i}", f"model.layers.{i}"
        out[f"{theirs}.input_layernorm.weight"] = state[f"{ours}.ln_1.weight"]
        out[f"{theirs}.post_attention_layernorm.weight"] = state[f"{ours}.ln_2.weight"]
        for part in ("weight", "bias") if config.bias else ("weight",):
            q, k, v = state[f"{ours}.attn.c_attn.{part}"].chunk(3)
            gate, up = state[f"{ours}.mlp.c_fc.{part}"].chunk(2)
            pieces = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v,
                      "self_attn.o_proj": state[f"{ours}.attn.c_proj.{part}"],
                      "mlp.gate_proj": gate, "mlp.up_proj": up,
                      "mlp.down_proj": state[f"{ours}.mlp.c_proj.{part}"]}
            out |= {f"{theirs}.{n}.{part}": p for n, p in pieces.items()}
    return out


def _is_conv1d(name: str) -> bool:
    """Whether GPT-2 keeps this weight as a Conv1D, (in, out), where nn.Linear has (out, in)."""
    return name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def config_faults(theirs: dict[str, Any], config: GPTConfig) -> list[str]:
    """What keeps GPT(config) from taking GPT-2 weights with this config.json, a line each with what
    would be right; [] if nothing does."""
    if theirs.get("model_type") != "gpt2":
        return [f"its model_type is {theirs.get('model_type')!r}: only gpt2 can be imported"]
    c = config
    odd = [f"its {key} is {theirs[key]!r}, which this model does not do"
           for key, plain in (("scale_attn_weights", True), ("layer_norm_epsilon", 1e-5),
                              ("scale_attn_by_inverse_layer_idx", False),
                              ("add_cross_attention", False))
           if theirs.get(key, plain) != plain]
    activation = theirs.get("activation_function", "gelu_new")
    known = {v: k for k, v in ACTIVATIONS["gpt2"].items()} | dict.fromkeys(TANH_GELUS, "gelu_tanh")
    d = theirs.get("n_embd", 768)
    right = {"n_layer": theirs.get("n_layer", 12), "n_head": theirs.get("n_head", 12), "n_embd": d,
             "d_ff": theirs.get("n_inner") or 4 * d, **SWITCHES["gpt2"],
             "tied": theirs.get("tie_word_embeddings", True)}
    if activation in known:
        right["activation"] = known[activation]
    else:
        odd.append(f"its activation_function is {activation!r}, which this model does not have")
    faults = odd + [f"model.{key} = {getattr(c, key)}: the weights have {value}"
                    for key, value in right.items() if getattr(c, key) != value]
    positions, vocab = theirs.get("n_positions", 1024), theirs.get("vocab_size", 50257)
    if c.block_size > positions:
        faults.append(f"model.block_size = {c.block_size}: the weights know {positions} positions "
                      "(fewer are fine)")
    if padded_vocab(vocab) != c.vocab_size:
        faults.append(f"data.tokenizer: its vocabulary, padded, has {c.vocab_size} ids, the "
                      f"weights have {vocab}, padded {padded_vocab(vocab)}")
    return faults


def from_hf(config: GPTConfig, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2 weights as the state of GPT(config), whose shape config_faults has passed.

    theirs: names with or without 'transformer.'. Positions beyond block_size are left out. Padded
    ids get the mean of the embeddings: by Jensen's inequality they then have together at most
    n_padded / n_vocab of the probability, where zeros would have nearly all of it (GPT-2's logits
    lie far below 0). Raises ImpossiblePoint with every tensor that is missing, of another shape, or
    a bias other than zero where config.bias is false."""
    from slm.cost import parameter_shapes
    theirs = {name.removeprefix("transformer."): p.float() for name, p in theirs.items()}
    faults, out = [], {}
    for name, shape in parameter_shapes(config).items():
        p = theirs.get(name)
        if p is None:
            faults.append(f"they have no {name}")
            continue
        p = p.T if _is_conv1d(name) else p
        if name == "wpe.weight":
            p = p[:config.block_size]
        elif name in ("wte.weight", "lm_head.weight") and len(p) < config.vocab_size:
            p = torch.cat((p, p.mean(0, keepdim=True).expand(config.vocab_size - len(p), -1)))
        if tuple(p.shape) != shape:
            faults.append(f"their {name} is {tuple(p.shape)}, the model's {shape}")
        out[name] = p
    ignored = (".attn.bias", ".attn.masked_bias")            # causal masks of older versions
    biases = [name for name, p in theirs.items() if name.endswith(".bias") and name not in out
              and not name.endswith(ignored) and p.any()]
    if biases:
        faults.append(f"model.bias = {config.bias}: the weights have biases ({biases[0]} and "
                      f"{len(biases) - 1} more): true")
    if faults:
        raise ImpossiblePoint("\n".join(faults))
    return folded(out, config, power=-1)
