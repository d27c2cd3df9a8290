"""PEFT in a whole model: soft prompts, prefixes, adapters and edits against loops and transformers' own cache."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.support import model_config
from torch import Tensor, nn

from ablatio import attentions, pefts
from ablatio.errors import UserError
from ablatio.model.build import build_model
from ablatio.model.context import make_context
from ablatio.model.kv_cache import KVCache
from ablatio.model.language_model import LanguageModel
from ablatio.model.peft.merge import merge
from ablatio_std.mlps.experts import Experts

VOCAB, T = 50, 11
PREFIXED = sorted(e.name for e in attentions if e.facts["prefix"])


def tuned(name: str, knobs: dict[str, Any] | None = None, **options: Any) -> LanguageModel:
    """A small model in float64 with the method, and all trained parameters away from their initial values."""
    torch.manual_seed(0)
    net = build_model(model_config(**options), VOCAB).double()
    pefts.build(name, knobs or {}).apply(net, 0)
    net.double()
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        if p.requires_grad:
            p.data += 0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return net.eval()


def tokens(rows: int = 2, length: int = T) -> Tensor:
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("prompt", marks=pytest.mark.oracle("peft=prompt", "its embeddings laid before the text's")),
        pytest.param("p_tuning", marks=pytest.mark.oracle("peft=p_tuning", "its embeddings laid before the text's")),
    ],
)
@pytest.mark.parametrize("position", ["rope", "learned", "alibi", "t5"])
def test_prompts_are_embeddings_before_the_text(name: str, position: str) -> None:
    net, row = tuned(name, {"tokens": 5}, position=position), tokens()
    stack, virtual = net.model, net.model.virtual
    made = virtual.prompt if virtual.made is None else virtual.made(virtual.prompt)
    stack.virtual = None
    x = torch.cat([made.expand(2, -1, -1), stack.embed_tokens(row)], dim=1)
    ids = torch.zeros(2, 5 + T, dtype=torch.long)
    ctx = make_context(ids, stack.position, "causal", None, None, torch.float64)
    wanted = net.logits(stack.through(x, [ctx]))[:, 5:]
    stack.virtual = virtual
    torch.testing.assert_close(net(row), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.oracle("peft=p_tuning", "a loop over the LSTM's gates")
def test_lstm_encoder() -> None:
    made = tuned("p_tuning", {"tokens": 4, "hidden": 6, "layers": 1}).model.virtual
    lstm, mlp, x = made.made.lstm, made.made.mlp, made.prompt

    def one_way(order: list[int], end: str) -> dict[int, Tensor]:
        w, u, b, c = (getattr(lstm, f"{n}_l0{end}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        h = cell = x.new_zeros(6)
        said = {}
        for t in order:
            i, f, g, o = (w @ x[t] + b + u @ h + c).chunk(4)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            h = o.sigmoid() * cell.tanh()
            said[t] = h
        return said

    there, back = one_way([0, 1, 2, 3], ""), one_way([3, 2, 1, 0], "_reverse")
    for t in range(4):
        y = mlp[2](mlp[0](torch.cat([there[t], back[t]])).clamp(min=0))
        torch.testing.assert_close(made.made(x)[t], y)


@pytest.mark.oracle("peft=prefix", "transformers' Llama with past keys and values")
@pytest.mark.oracle("peft=p_tuning_v2", "transformers' Llama with past keys and values")
@pytest.mark.parametrize("name", ["prefix", "p_tuning_v2"])
def test_prefixes_are_past_keys_and_values(name: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.cache_utils import DynamicCache

    attention = {"name": "gqa", "n_kv_heads": 2}
    net = tuned(name, {"tokens": 5}, attention=attention, position={"name": "rope", "layout": "half"}).float()
    held = {n: t for n, t in net.state_dict().items() if ".virtual." not in n}
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=held["model.layers.0.mlp.up_proj.weight"].shape[0],
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        rms_norm_eps=net.model.norm.eps, tie_word_embeddings=True, attn_implementation="eager",
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    theirs.load_state_dict(held)
    cache, row = DynamicCache(), tokens()
    with torch.no_grad():
        for layer, (k, v) in net.model.virtual(net.model).items():
            cache.update(k.expand(2, -1, -1, -1).contiguous(), v.expand(2, -1, -1, -1).contiguous(), layer)
        wanted = theirs(row, past_key_values=cache, position_ids=torch.arange(5, 5 + T).expand(2, -1)).logits
        torch.testing.assert_close(net(row), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["prompt", "prefix", "llama_adapter"])
@pytest.mark.parametrize("attention", PREFIXED)
def test_each_document_sees_the_virtual_tokens(name: str, attention: str) -> None:
    """Packed documents equal single ones, and decoding a full pass, for each attention that supports a prefix."""
    net, row = tuned(name, {"tokens": 5}, attention=attention), tokens(1, 16)
    packed = net(row, torch.tensor([[0] * 5 + [1] * 8 + [2] * 3]))
    alone = torch.cat([net(row[:, a:b]) for a, b in ((0, 5), (5, 13), (13, 16))], dim=1)
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-9)
    cache = KVCache()
    with torch.no_grad():
        pieces = torch.cat([net(row[:, a:b], cache=cache) for a, b in ((0, 7), (7, 8), (8, 16))], dim=1)
    torch.testing.assert_close(pieces, net(row), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "architecture, objective",
    [("prefix", "prefix_lm"), ("encoder", "masked_lm"), ("encoder_decoder", "span_corruption")],
)
def test_prefixes_in_other_architectures(architecture: str, objective: str) -> None:
    """Each stack has its own prefix; left padding changes nothing; all prefixes get gradients."""
    net = tuned("prefix", {"tokens": 3}, architecture=architecture, objective=objective)
    row = tokens()
    plain = net(row)
    shifted = F.pad(row, (4, 0), value=1)
    segments = torch.cat([torch.full((2, 4), -1), torch.zeros(2, T, dtype=torch.long)], dim=1)
    torch.testing.assert_close(net(shifted, segments)[:, 4:], plain, rtol=1e-9, atol=1e-9)
    plain.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters() if p.requires_grad)


def test_generate_encodes_prompts_once() -> None:
    from ablatio.model.decoding.generate import Sampling, generate

    net = tuned("prefix", {"tokens": 4})
    prompts, greedy = [[1, 2, 3, 4, 5], [7, 8]], Sampling(temperature=0)
    together = generate(net, prompts, 6, greedy)
    for prompt, found in zip(prompts, together, strict=True):
        text = list(prompt)
        for _ in range(6):
            text.append(int(net(torch.tensor([text]))[0, -1].argmax()))
        assert text[len(prompt) :] == found


@pytest.mark.oracle("peft=llama_adapter", "a loop over heads and queries")
def test_llama_adapter() -> None:
    net, row = tuned("llama_adapter", {"tokens": 3, "layers": 1}, position="none"), tokens(1, 5)
    layers = net.model.layers
    assert "adapter" not in layers[0].self_attn._modules
    attention: Any = layers[1].self_attn
    inner = attention.adapter
    seen: list[tuple[Tensor, Tensor]] = []
    layers[1].self_attn.o_proj.register_forward_hook(lambda m, args, y: seen.append((args[0], y)))
    read: list[Tensor] = []
    layers[1].input_layernorm.register_forward_hook(lambda m, args, y: read.append(y))
    net(row)
    x, width = read[0][0], attention.d_head
    q, k, v = (F.linear(x, getattr(attention, f"{n}_proj").weight) for n in "qkv")
    pk, pv = (F.linear(inner.prompt, getattr(attention, f"{n}_proj").weight) for n in "kv")
    wanted = torch.zeros_like(q)
    for h in range(4):
        part = slice(h * width, (h + 1) * width)
        for t in range(5):
            text = torch.stack([q[t, part] @ k[s, part] for s in range(t + 1)]) / math.sqrt(width)
            prompt = torch.stack([q[t, part] @ p[part] for p in pk]) / math.sqrt(width)
            wanted[t, part] = text.softmax(0) @ v[: t + 1, part] + inner.gate * (prompt.softmax(0) @ pv[:, part])
    torch.testing.assert_close(seen[0][0][0], wanted)


@pytest.mark.oracle("peft=adapter", "its formula, around the plain layers")
@pytest.mark.oracle("peft=parallel_adapter", "its formula, around the plain layers")
@pytest.mark.oracle("peft=reft", "its formula, around the plain layers")
@pytest.mark.parametrize("name", ["adapter", "parallel_adapter", "reft"])
def test_small_networks_between_layers(name: str) -> None:
    knobs = {"adapter": {"targets": ("mlp",)}, "parallel_adapter": {"scale": 3.0}, "reft": {"rank": 2, "first": 4}}[
        name
    ]
    net, row = tuned(name, knobs, n_layers=1), tokens(1)
    block: Any = net.model.layers[0]
    layer: Any = block if name == "reft" else block.mlp
    adapter, said = layer.adapter, []
    layer.register_forward_hook(lambda m, args, y: said.append((args[0], y)))
    net(row)
    read, y = said[0]
    del layer.forward  # the layer without the adapter
    ctx = make_context(row, net.model.position, "causal", None, None, torch.float64)
    plain = layer(read, ctx)
    if name == "reft":
        r = adapter.rotation()
        torch.testing.assert_close(r @ r.T, torch.eye(2, dtype=torch.float64))
        edited = plain + (plain @ adapter.source.T + adapter.bias - plain @ r.T) @ r
        wanted = torch.cat([edited[:, :4], plain[:, 4:]], dim=1)
    else:
        source = plain if name == "adapter" else read
        inner = source @ adapter.down.weight.T + adapter.down.bias
        inner = F.gelu(inner) if name == "adapter" else inner.clamp(min=0)
        wanted = plain + (1.0 if name == "adapter" else 3.0) * (inner @ adapter.up.weight.T + adapter.up.bias)
    torch.testing.assert_close(y, wanted)


@pytest.mark.oracle("peft=dylora", "its formula, at each rank that is drawn")
@pytest.mark.parametrize("frozen", [False, True])
def test_dylora(frozen: bool) -> None:
    net = nn.Sequential(nn.Linear(8, 6)).double()
    pefts.build("dylora", {"targets": ("linear",), "rank": 4, "alpha": 8.0, "frozen": frozen, "used_rank": 2}).apply(
        net, 0
    )
    net.double()
    layer: Any = net[0]
    a, b = layer.adapter.lora_A, layer.adapter.lora_B
    b.data.normal_()
    x = torch.randn(3, 8, dtype=torch.float64)
    at = {r: F.linear(x, layer.weight + 8.0 / r * b[:, :r] @ a[:r], layer.bias) for r in range(1, 5)}
    net.eval()
    torch.testing.assert_close(net(x), at[2])
    net.train()
    met = set()
    for _ in range(40):
        a.grad = b.grad = None
        y = net(x)
        rank = next(r for r, wanted in at.items() if torch.allclose(y, wanted, atol=1e-12))
        y.sum().backward()
        learnt = [i + 1 for i in range(4) if a.grad[i].abs().max() > 0]
        assert learnt == ([rank] if frozen else list(range(1, rank + 1)))
        met.add(rank)
    assert met == {1, 2, 3, 4}


def test_virtual_tokens_need_a_model_of_ours() -> None:
    with pytest.raises(UserError, match="no place for virtual tokens"):
        pefts.build("prefix").apply(nn.Sequential(nn.Linear(2, 2)), 0)


@pytest.mark.oracle("peft=bitfit", "the names of the parameters")
@pytest.mark.oracle("peft=lntuning", "the names of the parameters")
def test_only_biases_or_norms_are_trained() -> None:
    for name, options, learned in (
        ("bitfit", {"bias": True}, lambda n: n.endswith(".bias")),
        ("lntuning", {"norm": "layernorm"}, lambda n: "norm" in n),
    ):
        net = build_model(model_config(**options), VOCAB)
        pefts.build(name).apply(net, 0)
        for n, p in net.named_parameters():
            assert p.requires_grad == learned(n), n
    with pytest.raises(UserError, match="matches no bias"):
        pefts.build("bitfit").apply(build_model(model_config(), VOCAB), 0)


@pytest.mark.oracle("peft=p_tuning", "embeddings replaced in a loop")
def test_virtual_tokens_in_the_places_of_marked_ones() -> None:
    net, row = tuned("p_tuning", {"place": (7, 3)}), tokens()
    row[:, 2], row[:, 5], row[0, 9] = 3, 7, 7
    table = net.model.embed_tokens
    placed = table.adapter
    made = placed.made(placed.prompt)
    x = table.weight[row].clone()
    for b in range(2):
        for t in range(T):
            if int(row[b, t]) in (7, 3):
                x[b, t] = made[(7, 3).index(int(row[b, t]))]
    ctx = make_context(row, net.model.position, "causal", None, None, torch.float64)
    torch.testing.assert_close(net(row), net.logits(net.model.through(x, [ctx])), rtol=1e-9, atol=1e-9)
    assert {n.rpartition(".")[0] for n, p in net.named_parameters() if p.requires_grad} >= {
        "model.embed_tokens.adapter"
    }
    for place, said in (((7, 7), "twice"), ((99,), "0 to 49")):
        with pytest.raises(UserError, match=said):
            tuned("p_tuning", {"place": place})


@pytest.mark.oracle("peft=prompt", "rows of the embedding table")
def test_initial_prompts() -> None:
    def initial(**knobs: Any) -> tuple[Tensor, Tensor]:
        net = build_model(model_config(), VOCAB)
        pefts.build("prompt", {"tokens": 5, **knobs}).apply(net, 0)
        return net.model.virtual.prompt.detach(), net.model.embed_tokens.weight.detach()

    prompt, table = initial(ids=(4, 9))
    assert torch.equal(prompt, table[[4, 9, 4, 9, 4]])
    prompt, table = initial()
    assert all(bool((table == row).all(1).any()) for row in prompt)
    prompt, table = initial(init="uniform")
    assert float(prompt.abs().max()) <= 0.5 and float(prompt.std()) == pytest.approx(12**-0.5, abs=0.05)
    with pytest.raises(UserError, match=r"peft\.ids has the token id 50"):
        initial(ids=(50,))


@pytest.mark.oracle("peft=mam", "the prefix's keys and values, and the adapters' loop, one after the other")
@pytest.mark.parametrize("rank", [0, 2])
def test_mix_and_match_is_its_methods_together(rank: int) -> None:
    net, row = tuned("mam", {"tokens": 3, "size": 8, "rank": rank}), tokens()
    trained = [n for n, p in net.named_parameters() if p.requires_grad]
    assert all(".virtual." in n or ".adapter." in n for n in trained)
    parts = {"virtual": [n for n in trained if ".virtual." in n], "mlp": [n for n in trained if ".mlp." in n]}
    assert all(parts.values()) and any("q_proj" in n for n in trained) == bool(rank)
    other = build_model(model_config(), VOCAB).double().eval()
    base = {n: t for n, t in net.state_dict().items() if ".virtual." not in n and ".adapter." not in n}
    other.load_state_dict(base)
    other.model.virtual = net.model.virtual
    for i, layer in enumerate(other.model.layers):
        adapter = net.model.layers[i].mlp.adapter

        def wrapped(module: nn.Module, inputs: Any, y: Tensor, adapter: Any = adapter) -> Tensor:
            x = inputs[0]
            inner = torch.relu(x @ adapter.down.weight.T + adapter.down.bias)
            return y + 4.0 * (inner @ adapter.up.weight.T + adapter.up.bias)

        layer.mlp.register_forward_hook(wrapped)
        for name in ("q_proj", "v_proj") if rank else ():
            mine = getattr(net.model.layers[i].self_attn, name)
            weight = getattr(layer.self_attn, name).weight
            weight.data += mine.adapter.scale * mine.adapter.lora_B @ mine.adapter.lora_A
    torch.testing.assert_close(net(row), other(row), rtol=1e-9, atol=1e-9)


@pytest.mark.oracle("peft=lora", "one product after another for each expert")
@pytest.mark.parametrize("rank", [2, 8])
@pytest.mark.parametrize("moe", ["moe", "deepseek_moe"])
def test_lora_of_experts_in_grouped_products(moe: str, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU in bfloat16, where the loads of the experts stay on the device."""
    found = []
    for grouped in (False, True):
        monkeypatch.setattr(Experts, "_takes_groups", lambda self, rows, grouped=grouped: grouped)
        net = tuned("lora", {"targets": ("experts",), "rank": rank}, mlp=moe, d_ff=96, match="none").float().train()
        torch.manual_seed(1)  # the router's noise
        loss = net(tokens()).square().mean()
        loss.backward()
        trained = {n: p.grad for n, p in net.named_parameters() if p.requires_grad}
        assert trained and all(g is not None for g in trained.values())
        found.append((loss.detach(), trained))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-7)


@pytest.mark.oracle("peft=lora", "each expert's own matrix W_e + s B_e A_e")
@pytest.mark.parametrize("moe", ["moe", "deepseek_moe"])
def test_lora_of_experts(moe: str) -> None:
    """The tuned model is the plain one with changed matrices; `linear` leaves the experts out, a name selects them."""
    net, row = tuned("lora", {"targets": ("experts",), "rank": 2}, mlp=moe), tokens()
    trained = {n.split(".adapter.")[0] for n, p in net.named_parameters() if p.requires_grad}
    assert trained and all("experts" in n for n in trained)
    plain = build_model(model_config(mlp=moe), VOCAB).double().eval()
    base = {n: t for n, t in net.state_dict().items() if ".adapter." not in n}
    plain.load_state_dict(base)
    for path in trained:
        layer, adapter = plain.get_submodule(path), net.get_submodule(path).adapter
        for e in range(len(layer.weight)):
            layer.weight.data[e] += 8.0 * adapter.lora_B[e] @ adapter.lora_A[e]
    torch.testing.assert_close(net(row), plain(row), rtol=1e-9, atol=1e-9)
    before = net(row).detach()
    merged = merge(net)
    torch.testing.assert_close(net(row), before, rtol=1e-9, atol=1e-9)
    merged.restore()
    assert torch.equal(net(row), before)
    for targets, some in ((("linear",), False), (("down_proj",), True)):
        other = tuned("lora", {"targets": targets, "rank": 2}, mlp=moe)
        found = [n for n, p in other.named_parameters() if p.requires_grad and p.dim() == 3]
        assert bool(found) == some
    with pytest.raises(UserError, match="experts of a mixture are not split"):
        tuned("lora", {"targets": ("experts",), "init": "pissa"}, mlp=moe)
    with pytest.raises(UserError, match="matches no layer"):
        tuned("dora", {"targets": ("experts",)}, mlp=moe)
