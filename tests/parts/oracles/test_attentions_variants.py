"""Variants of softmax attention against transformers' layers with copied weights, and loops in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.attention_loops import WIDTH, D, H, by_loop, context, made
from helpers.support import head_norm, model_config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3Config
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention, DiffLlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2Config
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention, GptOssConfig
from transformers.models.olmo2.modeling_olmo2 import Olmo2Attention, Olmo2Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3Config

from ablatio.model.attention.kernels import attend_by_steps
from ablatio.model.build import build_model
from ablatio.model.context import make_context
from ablatio.model.kv_cache import KVCache
from ablatio.registry.kinds import positions

WIDE = 4  # width of a head; even, for rope


def heads(x, width=WIDTH):
    return x.unflatten(-1, (-1, width)).transpose(1, 2)


def merged(x):
    return x.transpose(1, 2).flatten(2)


def wide(name, knobs=None, layer=0):
    """A part with heads of even width, for rope, and without bias, as in transformers' layers."""
    from ablatio.registry.kinds import attentions

    sizes = {"d_model": D, "d_head": WIDE, "n_heads": H, "n_layers": 4, "max_len": 16, "bias": False, "dropout": 0.0}
    given = {"scale": WIDE**-0.5, "inner_norm": None, "head_norm": head_norm}
    part = attentions.build(name, knobs, **sizes, layer=layer, **given).double()
    for p in part.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return part


def with_rope(length):
    """Our context, and transformers' cosine and sine of the same angles and causal mask."""
    sizes = {"d_model": D, "d_head": WIDE, "n_heads": H, "n_layers": 4, "max_len": 16}
    place = positions.build("rope", {"layout": "half"}, **sizes, causal=True)
    ctx = make_context(torch.zeros(2, length).long(), place, "causal", None, None, torch.float64)
    angles = torch.outer(torch.arange(length).double(), 1e4 ** (-torch.arange(0, WIDE, 2).double() / WIDE))
    tables = [torch.cat([f(angles)] * 2, dim=-1).expand(2, -1, -1) for f in (torch.cos, torch.sin)]
    mask = torch.full((length, length), float("-inf"), dtype=torch.float64).triu(1)[None, None]
    return ctx, {"position_embeddings": tables, "attention_mask": mask}


COMMON = {"hidden_size": D, "num_attention_heads": H, "num_hidden_layers": 4, "attn_implementation": "eager"}


def same_as(theirs, part, tolerance=1e-9, tables=WIDE):
    theirs = theirs.double().eval()
    theirs.load_state_dict(part.state_dict())
    x = torch.randn(2, 9, D, dtype=torch.float64)
    ctx, given = with_rope(9)
    given["position_embeddings"] = [table[..., :tables] for table in given["position_embeddings"]]
    torch.testing.assert_close(part(x, ctx), theirs(x, **given)[0], rtol=tolerance, atol=tolerance)


@pytest.mark.oracle("attention=differential", "transformers DiffLlamaAttention")
@pytest.mark.parametrize("layer", [0, 3])
def test_differential_is_diffllamas(layer):
    config = DiffLlamaConfig(**COMMON, head_dim=WIDE, num_key_value_heads=H)
    same_as(DiffLlamaAttention(config, layer), wide("differential", layer=layer), tolerance=1e-5)  # float32 softmax


@pytest.mark.oracle("attention=differential", "the paper's equation in float64")
def test_differential_in_float64():
    """One pair of heads at a time, by the paper's equations."""
    part, x, said = made("differential", layer=2), torch.randn(2, 7, D, dtype=torch.float64), []
    start = 0.8 - 0.6 * math.exp(-0.3 * 2)
    lam = (part.lambda_q1 @ part.lambda_k1).exp() - (part.lambda_q2 @ part.lambda_k2).exp() + start
    maps, v = softmax(part, x, WIDTH**-0.5), heads(part.v_proj(x))
    for h in range(H // 2):
        y = (maps[:, h] - lam * maps[:, h + H // 2]) @ torch.cat([v[:, h], v[:, h + H // 2]], dim=-1)
        said.append(y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * (1 - start))
    expected = part.o_proj(torch.cat(said, dim=-1))
    torch.testing.assert_close(part(x, context(7)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("attention=gqa", "transformers GptOssAttention (sinks)")
def test_sinks_are_those_of_gpt_oss():
    config = GptOssConfig(**COMMON, head_dim=WIDE, num_key_value_heads=2, attention_bias=False)
    same_as(GptOssAttention(config, 1), wide("gqa", {"sinks": True}), tables=WIDE // 2)


@pytest.mark.oracle("attention=gqa", "transformers Gemma2Attention (softcap)")
def test_softcap_is_gemma2s():
    config = Gemma2Config(
        **COMMON, head_dim=WIDE, num_key_value_heads=2, query_pre_attn_scalar=WIDE, attn_logit_softcapping=0.7
    )
    same_as(Gemma2Attention(config, 1), wide("gqa", {"softcap": 0.7}), tolerance=1e-6)  # their softmax is in float32


@pytest.mark.oracle("attention=gqa", "transformers Qwen3Attention (qk_norm)")
def test_qk_norm_is_qwen3s():
    config = Qwen3Config(**COMMON, head_dim=WIDE, num_key_value_heads=2, rms_norm_eps=1e-6, attention_bias=False)
    same_as(Qwen3Attention(config, 1), wide("gqa", {"qk_norm": "rmsnorm"}), tolerance=1e-5)  # float32 inside


@pytest.mark.oracle("attention=gqa", "transformers Olmo2Attention (qk_norm of all heads together)")
def test_whole_qk_norm_is_olmo2s():
    config = Olmo2Config(**COMMON, num_key_value_heads=2, rms_norm_eps=1e-6, attention_bias=False)
    config.head_dim = WIDE
    same_as(Olmo2Attention(config, 1), wide("gqa", {"qk_norm": "whole_rmsnorm"}), tolerance=1e-5)  # float32 inside


@pytest.mark.oracle("attention", "the same attention on values that were normed by hand")
@pytest.mark.parametrize("name, knobs", [("mha", {}), ("mqa", {}), ("gqa", {"n_kv_heads": 2})])
@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm", "whole_layernorm", "whole_rmsnorm"])
def test_v_norm_normalizes_values_only(name, knobs, kind):
    part, x = made(name, knobs | {"v_norm": kind}), torch.randn(2, 6, D, dtype=torch.float64)
    plain = made(name, knobs)
    plain.load_state_dict({k: v for k, v in part.state_dict().items() if "v_norm" not in k})
    v = part.v_proj(x)
    groups = v.view(2, 6, -1, v.shape[-1] if kind.startswith("whole") else WIDTH)
    if kind.endswith("layernorm"):
        groups = groups - groups.mean(-1, keepdim=True)
    eps = 1e-5 if kind.endswith("layernorm") else 1e-6
    width = groups.shape[-1]
    weight = torch.rand(width, dtype=torch.float64)
    part.v_norm.weight.data = weight
    if kind.endswith("layernorm"):
        part.v_norm.bias.data.zero_()
    normed = groups / (groups.square().sum(-1, keepdim=True) / width + eps).sqrt() * weight

    class Given(torch.nn.Module):
        def forward(self, x):
            return normed.flatten(2)

    plain.v_proj = Given()
    torch.testing.assert_close(part(x, context(6)), plain(x, context(6)), rtol=1e-10, atol=1e-12)


@pytest.mark.oracle("attention=mla", "transformers DeepseekV3Attention")
@pytest.mark.parametrize("q_rank", [None, 5])
def test_mla_is_deepseeks(q_rank):
    """The two down-projections and the two up-projections of keys and values are concatenated, as in transformers."""
    config = DeepseekV3Config(
        **COMMON, num_key_value_heads=H, q_lora_rank=q_rank, kv_lora_rank=7, qk_rope_head_dim=WIDE, v_head_dim=WIDE,
        qk_nope_head_dim=3, rope_interleave=False, attention_bias=False,
    )  # fmt: skip
    part = wide("mla", {"kv_rank": 7, "q_rank": q_rank, "nope": 3})
    weights = {n: p.detach() for n, p in part.named_parameters()}
    k, v = (weights[f"{n}_proj.weight"].unflatten(0, (H, -1)) for n in "kv")
    state = {
        "kv_a_proj_with_mqa.weight": torch.cat([weights["kv_proj.weight"], weights["k_rope_proj.weight"]]),
        "kv_a_layernorm.weight": weights["kv_norm.weight"],
        "kv_b_proj.weight": torch.cat([k, v], dim=1).flatten(0, 1),
        "o_proj.weight": weights["o_proj.weight"],
    }
    if q_rank:
        state |= {"q_a_proj.weight": weights["q_down_proj.weight"], "q_a_layernorm.weight": weights["q_norm.weight"]}
    state["q_b_proj.weight" if q_rank else "q_proj.weight"] = weights["q_proj.weight"]
    theirs = DeepseekV3Attention(config, 0).double().eval()
    theirs.load_state_dict(state)
    x = torch.randn(2, 9, D, dtype=torch.float64)
    ctx, given = with_rope(9)
    torch.testing.assert_close(part(x, ctx), theirs(x, **given)[0], rtol=1e-5, atol=1e-5)  # their norm is in float32


def test_mla_caches_only_the_latent():
    model, cache = sharp({"name": "mla", "kv_rank": 6}), KVCache()
    model(torch.randint(0, 50, (2, 11)), cache=cache)
    widths = [(k.shape[1], k.shape[3], v.shape[1], v.shape[3]) for k, v in cache._buffers.values()]
    assert widths == [(1, 4, 1, 6)] * 3


def softmax(part, x, scale, extra=0.0):
    """softmax over earlier keys of q k^T * scale + extra, as one matrix: (B, H, T, S)."""
    q, k = (heads(p(x)) for p in (part.q_proj, part.k_proj))
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    weights = (q @ k.mT * scale + extra).masked_fill(later, float("-inf")).exp()
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.oracle("attention", "float64 loop")
@pytest.mark.parametrize("kind", ["layernorm", "l2"])
@pytest.mark.parametrize("name, n_kv", [("mha", H), ("mqa", 1), ("sliding", H)])
def test_qk_norm_by_loop(kind, name, n_kv):
    knobs = {"qk_norm": kind} | ({"window": 16} if name == "sliding" else {})
    part, x = made(name, knobs), torch.randn(2, 6, D, dtype=torch.float64)

    class Normed(torch.nn.Module):
        """Projection and norm in one; by_loop divides by sqrt(d_head) again."""

        def __init__(self, project, weight=None, bias=None, factor=1.0):
            super().__init__()
            self.parts = project, weight, bias, factor

        def forward(self, x):
            project, weight, bias, factor = self.parts
            y = project(x).unflatten(-1, (-1, WIDTH))
            if kind == "l2":
                y = y / y.square().sum(-1, keepdim=True).sqrt() * factor
            else:
                y = y - y.mean(-1, keepdim=True)
                y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias
            return y.flatten(-2)

    class Plain:
        v_proj, o_proj = part.v_proj, part.o_proj

    if kind == "l2":
        Plain.q_proj = Normed(part.q_proj, factor=part.q_norm.gain * math.sqrt(WIDTH))
        Plain.k_proj = Normed(part.k_proj)
    else:
        Plain.q_proj = Normed(part.q_proj, part.q_norm.weight, part.q_norm.bias)
        Plain.k_proj = Normed(part.k_proj, part.k_norm.weight, part.k_norm.bias)
    theirs = by_loop(Plain, x, n_kv, lambda *_: 0.0, lambda *_: True)
    torch.testing.assert_close(part(x, context(6)), theirs, rtol=1e-9, atol=1e-11)


def test_l2_starts_at_the_papers_scale():
    """g = log2(L^2 - L), L = max_len = 16 in these parts."""
    from ablatio.registry.kinds import attentions

    sizes = {"d_model": D, "d_head": WIDTH, "n_heads": H, "max_len": 16, "bias": False, "dropout": 0.0, "layer": 0}
    part = attentions.build("mha", {"qk_norm": "l2"}, **sizes, scale=1.0, inner_norm=None, head_norm=head_norm)
    assert part.q_norm.gain.item() == pytest.approx(math.log2(240))


@pytest.mark.oracle("attention=gated", "the paper's equation in float64")
@pytest.mark.parametrize("per, width", [("element", WIDTH), ("head", 1)])
def test_gated(per, width):
    part, x = made("gated", {"per": per}), torch.randn(2, 7, D, dtype=torch.float64)
    said = softmax(part, x, WIDTH**-0.5) @ heads(part.v_proj(x))  # (B, H, T, d_head)
    gates = heads(1 / (1 + (-part.g_proj(x)).exp()), width)
    expected = part.o_proj(merged(said * gates))
    torch.testing.assert_close(part(x, context(7)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("attention=talking_heads", "float64 loop")
@pytest.mark.parametrize("sides", ["both", "logits", "weights"])
def test_talking_heads(sides):
    part, x = made("talking_heads", {"sides": sides}), torch.randn(2, 6, D, dtype=torch.float64)
    q, k, v = (heads(p(x)) for p in (part.q_proj, part.k_proj, part.v_proj))
    first = part.logits if sides != "weights" else torch.eye(H).double()
    second = part.weights if sides != "logits" else torch.eye(H).double()
    said = torch.zeros_like(v)
    for b in range(2):
        for t in range(6):
            scores = torch.stack([q[b, h, t] @ k[b, h, : t + 1].T for h in range(H)]) * WIDTH**-0.5  # (H, S)
            shares = second.T @ (first.T @ scores).softmax(-1)
            for h in range(H):
                said[b, h, t] = shares[h] @ v[b, h, : t + 1]
    torch.testing.assert_close(part(x, context(6)), part.o_proj(merged(said)), rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("attention=forgetting", "products of the gates in float64")
def test_forgetting():
    """The decay of each pair is the product of the gates between its tokens."""
    part, x = made("forgetting"), torch.randn(2, 7, D, dtype=torch.float64)
    f, decay = part.f_proj(x).sigmoid(), torch.zeros(2, H, 7, 7, dtype=torch.float64)
    for t in range(7):
        for s in range(t):
            decay[:, :, t, s] = torch.stack([f[:, i] for i in range(s + 1, t + 1)]).prod(0).log()
    expected = part.o_proj(merged(softmax(part, x, WIDTH**-0.5, decay) @ heads(part.v_proj(x))))
    torch.testing.assert_close(part(x, context(7)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.oracle("attention=value_residual", "the paper's equation in float64")
@pytest.mark.parametrize("kind", ["learned", "identity"])
def test_value_residual(kind):
    """Two layers in one pass: the second uses its own values and those of the first."""
    first, second = (made("value_residual", {"kind": kind, "start": 0.4}, layer=i) for i in (0, 1))
    x, y, ctx = torch.randn(2, 7, D, dtype=torch.float64), torch.randn(2, 7, D, dtype=torch.float64), context(7)
    first(x, ctx)
    own, old = second.shares if kind == "learned" else (0.4, 0.4)
    v = own * heads(second.v_proj(y)) + old * heads(first.v_proj(x))
    expected = second.o_proj(merged(softmax(second, y, WIDTH**-0.5) @ v))
    torch.testing.assert_close(second(y, ctx), expected, rtol=1e-9, atol=1e-12)


def sharp(attention, **options):
    sizes = {"d_model": 16, "n_layers": 3, "n_heads": 4, "max_len": 64, "tied": False}
    model = build_model(model_config(attention=attention, **sizes, **options), 50).double().eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.4)
    return model


VARIANTS = [
    {"name": "gated"}, {"name": "talking_heads"}, {"name": "differential"}, {"name": "value_residual"},
    {"name": "forgetting"}, {"name": "mla"}, {"name": "gqa", "sinks": True, "softcap": 3.0, "qk_norm": "l2"},
    {"name": "sliding", "window": 3, "full_every": 2, "n_kv_heads": 2, "softcap": 5.0, "qk_norm": "rmsnorm"},
    {"name": "sliding", "window": 3, "sinks": True},
]  # fmt: skip


@pytest.mark.parametrize("attention", VARIANTS, ids=lambda a: "-".join(map(str, a.values())))
@pytest.mark.parametrize("position", ["rope", "alibi", "none"])
@torch.no_grad()
def test_decoding_packing_and_padding(attention, position):
    """With sharp weights, single tokens, packed documents and padded rows give the result of each text alone."""
    model, tokens, cache = sharp(attention, position=position), torch.randint(0, 50, (2, 20)), KVCache()
    segments = torch.tensor([[0] * 20, [-1] * 4 + [0] * 16])
    steps = [model(tokens[:, :6], segments[:, :6], cache)]
    steps += [model(t, cache=cache) for t in tokens[:, 6:].split([1, 5, 1, 1, 1, 1, 1, 1, 1, 1], dim=1)]
    for row, pad in ((0, 0), (1, 4)):
        alone = model(tokens[row : row + 1, pad:])
        torch.testing.assert_close(torch.cat(steps, dim=1)[row, pad:], alone[0], rtol=1e-9, atol=1e-10)
    packed = model(tokens, torch.tensor([[0] * 7 + [1] * 13] * 2))
    alone = torch.cat([model(tokens[:, :7]), model(tokens[:, 7:])], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["gated", "talking_heads", "differential", "value_residual", "mla", "sliding"])
@torch.no_grad()
def test_an_encoder_decoder_decodes_as_in_a_full_pass(name):
    """Keys of cross-attention are cached once: a full pass equals one token at a time."""
    model = sharp(name, architecture="encoder_decoder", position="rope")
    source, tokens, cache = torch.randint(0, 50, (2, 9)), torch.randint(0, 50, (2, 8)), KVCache()
    memory = model.encode(source)
    whole = model.logits(model.model(tokens, memory=memory))
    steps = [model.logits(model.model(t, None, cache, memory=memory)) for t in tokens.split(1, dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_softcap_bounds_the_scores():
    """Of two keys, the odds are at most exp(2 c); scores far below c stay as they are."""
    values = torch.eye(2, dtype=torch.float64)[None, None]
    ctx = make_context(torch.zeros(1, 2, dtype=torch.long), None, "full", None, None, torch.float64)
    for score in (-500.0, 500.0, 1e-5):
        q, k = torch.ones(1, 1, 2, 1, dtype=torch.float64), torch.tensor([score, 0.0], dtype=torch.float64)
        first, second = attend_by_steps(q, k.view(1, 1, 2, 1), values, ctx, scale=1.0, softcap=2.0)[0, 0, 0]
        odds = float((first / second).log())
        assert abs(odds) <= 2 and (score != 1e-5 or math.isclose(odds, score, rel_tol=1e-6))


def test_a_large_sink_takes_all_weight():
    part, x = made("mha", {"sinks": True}, bias=False), torch.randn(1, 5, D, dtype=torch.float64)
    with torch.no_grad():
        part.sinks.fill_(-1e9)
        plain = made("mha", bias=False)
        plain.load_state_dict({k: v for k, v in part.state_dict().items() if k != "sinks"})
        torch.testing.assert_close(part(x, context(5, batch=1)), plain(x, context(5, batch=1)))
        part.sinks.fill_(1e3)
        assert not F.relu(part(x, context(5, batch=1)).abs() - 1e-12).any()
