"""Stabilizers in real runs: rewinding after a spike, weight averaging, batch ramp, embedding gradient scaling."""

import json
import random
from pathlib import Path

import pytest
import torch
from helpers.runs import TINY, ablatio, cut_and_resumed, metrics, summary
from helpers.support import model_config

from ablatio.model.build import build_model
from ablatio.model.example import Example
from ablatio.model.optimizer_step import OptimizerStep, Rewind, SkipStep
from ablatio.registry.kinds import stabilizers
from ablatio.storage.checkpoints import Checkpoints
from ablatio.testing import tiny_models
from ablatio.training.load import load_run


@pytest.fixture
def spiked_text(text_file: Path, tmp_path: Path) -> Path:
    """The text with one stretch of random characters, which causes a loss spike."""
    noise = random.Random(3)
    pieces = text_file.read_text(encoding="utf-8").split("\n\n")
    garbage = "".join(chr(noise.randrange(0x4E00, 0x9FFF)) for _ in range(400))
    path = tmp_path / "spiked.txt"
    path.write_text("\n\n".join([*pieces, garbage]), encoding="utf-8")
    return path


REWIND = [
    "stabilizer=[clip,spike_rewind]", "stabilizer.spike_rewind.window=12", "stabilizer.spike_rewind.sigma=8",
    "stabilizer.spike_rewind.rise=1.5", "stabilizer.spike_rewind.rewind_steps=3", "stabilizer.spike_rewind.skip=6",
    "stabilizer.spike_rewind.max_rewinds=30", "train.batch_size=2", "train.steps=300", "train.checkpoint_every=10",
    "train.val_every=null", "data.document_mask=false", "data.val_fraction=0.05",
]  # fmt: skip


def test_spike_rewind_skips_the_spike_and_reports_it(tmp_path: Path, spiked_text: Path) -> None:
    settings = [*TINY, f"source.path={spiked_text}", f"out={tmp_path}", *REWIND]
    whole = ablatio(["train", *settings, "name=whole"], tmp_path / "log")
    assert whole.code == 0, whole.err
    rewinds = summary(tmp_path / "whole")["rewinds"]
    assert rewinds, "no spike occurred in 300 steps"
    for rewind in rewinds:
        assert 0 <= rewind["to"] <= rewind["at"] - 3 and rewind["skipped"] >= 6
        assert f"at step {rewind['at']}; back to step {rewind['to']}" in whole.out
    rows = [int(row["step"]) for row in metrics(tmp_path / "whole")]
    assert rows == sorted(rows) and rows[-1] == 300  # rewound steps are removed from the metrics
    # The same run, killed after its first rewind and resumed, skips the same batches.
    cut = cut_and_resumed(settings, tmp_path, (rewinds[0]["at"] // 10 + 2) * 10)
    assert summary(cut)["rewinds"] == rewinds
    assert summary(cut)["after"] == summary(tmp_path / "whole")["after"]


def test_too_many_rewinds_count_as_divergence(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", *REWIND]
    settings += ["stabilizer.spike_rewind.sigma=0.001", "stabilizer.spike_rewind.rise=0", "name=run"]
    settings += ["stabilizer.spike_rewind.max_rewinds=2"]
    run = ablatio(["train", *settings], tmp_path / "log")
    assert run.code == 4 and "after 2 rewinds" in run.err
    assert len(summary(tmp_path / "run")["rewinds"]) == 2


def test_spike_rewind_requires_checkpoints(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", *REWIND, "train.checkpoint_every=null"]
    refused = ablatio(["train", *settings], tmp_path / "log")
    assert refused.code == 2 and "train.checkpoint_every=100" in refused.err


def test_ema_weights_are_scored_and_saved_and_resume_is_exact(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "stabilizer=[clip,ema]", "model.dropout=0.2"]
    assert ablatio(["train", *settings, "name=whole"], tmp_path / "log").code == 0
    cut = cut_and_resumed(settings, tmp_path, 8)
    assert metrics(cut) == metrics(tmp_path / "whole")
    run, _ = load_run(cut)
    state = json.loads((cut / "summary.json").read_text())["after"]
    assert run.score(run.task.validation())["loss"] == state["loss"]  # the saved weights are those that were scored


def test_ema_of_weights_that_thaw(tmp_path: Path, text_file: Path) -> None:
    """The average of a frozen embedding is the embedding; once it thaws, it moves, and a resumed run is the same."""
    settings = [
        *TINY, f"source.path={text_file}", f"out={tmp_path}", "stabilizer=[clip,ema]", "stabilizer.ema.decay=0.5",
        "roles.frozen=stages([embedding]@0,[]@0.5)", "train.checkpoint_every=2", "train.keep=20",
    ]  # fmt: skip
    done = ablatio(["train", *settings, "name=whole"], tmp_path / "log")
    assert done.code == 0, done.err
    saved = Checkpoints(tmp_path / "whole" / "checkpoints", 20)
    embedding = {step: saved.load(step).model["model.embed_tokens.weight"] for step in (2, 4, 6, 8, 12)}
    for step in (4, 6):
        torch.testing.assert_close(embedding[step], embedding[2], rtol=0, atol=1e-7)
    assert (embedding[8] - embedding[6]).abs().max() > 1e-5
    cut = cut_and_resumed(settings, tmp_path, 4)
    assert metrics(cut) == metrics(tmp_path / "whole")
    again = Checkpoints(cut / "checkpoints", 20).load(12).model
    assert all(torch.equal(again[name], t) for name, t in saved.load(12).model.items())


@pytest.mark.oracle("stabilizer=ema", "float64 loop")
def test_ema_by_hand() -> None:
    part = stabilizers.build("ema", {"decay": 0.9})
    net, held = tiny_models.model(), None

    class Oracle:
        def after_step(self, step: OptimizerStep) -> dict[str, torch.Tensor]:
            nonlocal held
            now = step.model.lm_head.weight.detach().double()
            d = min(0.9, (1 + step.index) / (10 + step.index))
            held = now if held is None else d * held + (1 - d) * now
            return {}

    tiny_models.run(net, torch.optim.SGD(net.parameters(), lr=0.5), 20, hooks=[part, Oracle()])
    with part.averaged(net):
        torch.testing.assert_close(net.lm_head.weight.detach().double(), held, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(net.lm_head.weight.double(), held)


@pytest.mark.oracle("stabilizer=batch_ramp", "rows of each batch, by hand")
def test_batch_ramp_grows_with_tokens(tmp_path: Path, text_file: Path) -> None:
    settings = [*TINY, f"source.path={text_file}", f"out={tmp_path}", "stabilizer=[clip,batch_ramp]"]
    settings += ["stabilizer.batch_ramp.start=0.25", "stabilizer.batch_ramp.tokens=320", "train.batch_size=8"]
    settings += ["train.log_every=1", "name=run"]
    assert ablatio(["train", *settings], tmp_path / "log").code == 0
    tokens = [int(row["tokens"]) for row in metrics(tmp_path / "run") if row["train/loss"]]
    rows = [(b - a) // 16 for a, b in zip([0, *tokens], tokens, strict=False)]
    assert rows[0] == 2 and rows[-1] == 8 and rows == sorted(rows)
    seen = 0
    for row in rows:  # by hand: 2 rows at first, 8 after 320 tokens
        assert row == round(8 * (0.25 + 0.75 * min(1.0, seen / 320)))
        seen += row * 16


@pytest.mark.oracle("stabilizer=embedding_shrink", "the gradient without it")
@pytest.mark.parametrize("tied", [True, False])
def test_embedding_shrink_scales_the_embedding_gradient(tied: bool) -> None:
    grads = []
    for alpha in (1.0, 0.1):
        net = build_model(model_config(tied=tied), 50).double()
        stabilizers.build("embedding_shrink", {"alpha": alpha}).attach(net)
        x = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
        net.loss(Example(x[:, :-1], x[:, 1:])).total.backward()
        grads.append({n: p.grad for n, p in net.named_parameters()})
    full, shrunk = grads
    name = "model.embed_tokens.weight"
    for other in full.keys() - {name}:
        torch.testing.assert_close(shrunk[other], full[other])
    unseen = [i for i in range(50) if i not in set(x[:, :-1].flatten().tolist())]
    seen = sorted(set(x[:, :-1].flatten().tolist()))
    if not tied:
        torch.testing.assert_close(shrunk[name], 0.1 * full[name])
    else:  # the head's gradient of a tied matrix is unchanged
        torch.testing.assert_close(shrunk[name][unseen], full[name][unseen])
        assert not torch.allclose(shrunk[name][seen], full[name][seen])


@pytest.mark.oracle("stabilizer=z_loss", "logsumexp of all logits")
def test_z_loss_by_hand() -> None:
    net = build_model(model_config(), 50).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    batch = Example(x[:, :-1], x[:, 1:])
    plain = net.loss(batch).total
    stabilizers.build("z_loss", {"weight": 0.01}).attach(net)
    log_z = net(batch.inputs).logsumexp(-1)
    with_z = net.loss(batch).total
    torch.testing.assert_close(with_z - plain, 0.01 * log_z.square().sum())
    ours = torch.autograd.grad(with_z, list(net.parameters()), retain_graph=True)
    logits = net(batch.inputs)
    ce = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
    theirs = torch.autograd.grad(ce + 0.01 * logits.logsumexp(-1).square().sum(), list(net.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("bad", [50.0, float("nan"), float("inf")])
def test_loss_outliers_are_skipped_or_rewound(bad: float) -> None:
    net = tiny_models.model()
    for p in net.parameters():
        p.grad = torch.ones_like(p)

    def step(index: int, loss: float) -> OptimizerStep:
        parameters = list(net.parameters())
        return OptimizerStep(net, parameters, None, index, 100, torch.tensor(loss), lambda: torch.tensor(0.0), 1)  # type: ignore[arg-type]

    skip, back = (stabilizers.build(name, {"window": 16}) for name in ("skip_step", "spike_rewind"))
    for part in (skip, back):
        for index in range(20):
            part.before_step(step(index, 5.0 + 0.1 * (index % 3)))
        state = part.state_dict()
        with pytest.raises((SkipStep, Rewind)):
            part.before_step(step(20, bad))
        again = stabilizers.build("skip_step" if part is skip else "spike_rewind", {"window": 16})
        again.load_state_dict(json.loads(json.dumps(state)))
        with pytest.raises((SkipStep, Rewind)):
            again.before_step(step(20, bad))
        part.before_step(step(21, 5.1))  # a normal step is accepted again


def test_skip_step_counts_skipped_steps(tmp_path: Path, spiked_text: Path) -> None:
    settings = [
        *TINY,
        f"source.path={spiked_text}",
        f"out={tmp_path}",
        "stabilizer=[clip,skip_step]",
        "train.steps=300",
    ]
    settings += ["stabilizer.skip_step.window=12", "stabilizer.skip_step.sigma=8", "train.batch_size=2", "name=run"]
    settings += ["data.document_mask=false", "data.val_fraction=0.05", "train.val_every=null"]
    assert ablatio(["train", *settings], tmp_path / "log").code == 0
    skipped = [float(row["train/skipped_steps"]) for row in metrics(tmp_path / "run") if row["train/skipped_steps"]]
    assert skipped[-1] >= 1 and skipped == sorted(skipped)
