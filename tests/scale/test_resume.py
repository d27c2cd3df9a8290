"""A checkpoint does not know how many devices wrote it: 2 ranks -> 1 device -> 2 ranks is one run."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.gangs import TINY, TWO, finished, in_one_gang, rows

from ablatio.storage.checkpoints import Checkpoints

STEPS = ("train.steps=6", "train.checkpoint_every=2", "train.keep=9")


def back_to(folder: Path, step: int) -> None:
    """Leave the folder as a run that was interrupted at this step."""
    Checkpoints(folder / "checkpoints").forget(after=step)
    (folder / "summary.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "stabilizer"),
    [
        ("ddp", "[clip,ema]"),
        pytest.param("fsdp", "[clip,ema]", marks=pytest.mark.long),
        pytest.param("tensor", "[clip,ema]", marks=pytest.mark.long),
        pytest.param("context", "[clip,ema]", marks=pytest.mark.long),
        pytest.param("pipeline", "[clip,ema]", marks=pytest.mark.long),
        pytest.param("zero2", "[clip,ema]", marks=pytest.mark.long),
        pytest.param("zero3", "[clip]", marks=pytest.mark.long),
    ],
)
def test_two_one_two(tmp_path: Path, strategy: str, stabilizer: str) -> None:
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    same_on_the_way(tmp_path, strategy, (*TINY, *STEPS, f"stabilizer={stabilizer}"), (2, 4))


def same_on_the_way(folder: Path, strategy: str, run: Sequence[str], changes: tuple[int, int]) -> None:
    """A run on two devices that goes on alone from one step and on two from another has the metrics of one device."""
    two, alone = (f"strategy={strategy}", "trainer.devices=2"), ("strategy=single", "trainer.devices=1")
    mixed = folder / "mixed"
    in_one_gang(folder / "log", [("one", (*run, f"out={folder}", "name=one"))], 1)
    in_one_gang(folder / "log", [("mixed", (*run, *two, f"out={folder}", "name=mixed"))], 2)
    back_to(mixed, changes[0])
    in_one_gang(folder / "log", [("mixed", (f"resume={mixed}", *alone))], 1)
    back_to(mixed, changes[1])
    done = finished(f"resume={mixed}", *two)  # by the command that starts the ranks
    assert done.returncode == 0, done.stderr
    for own, theirs in zip(rows(folder / "one"), rows(mixed), strict=True):
        assert theirs == pytest.approx(own, abs=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tensor", "zero2", "zero3"])
def test_in_the_middle_of_a_rollout(tmp_path: Path, strategy: str) -> None:
    """A rollout lasts four steps: both changes find one that the other number of devices has sampled."""
    if strategy.startswith("zero"):
        pytest.importorskip("deepspeed")
    usual = [word for word in TINY if not word.startswith("tokenizer=")]
    policy = ("task=policy", "alignment=ppo", "alignment.minibatches=4", "reward=length", "reward.target=8",
              "task.prompt_tokens=8", "task.answer_tokens=16", "task.held_out=4", "source=arithmetic",
              "tokenizer=symbols", "stabilizer=[clip]", "alignment.epochs=1")  # fmt: skip
    steps = ("train.steps=7", "train.checkpoint_every=1", "train.keep=9")
    same_on_the_way(tmp_path, strategy, (*usual, *policy, *steps), (2, 5))


MESHES = {
    "copies": ("strategy=fsdp", "strategy.copies=2"),
    "grid": ("strategy=tensor", "strategy.degree=2"),
    "heads": ("strategy=tensor",),
}


@pytest.mark.long
def test_four_one_two(tmp_path: Path) -> None:
    """Groups of devices write the checkpoint of one device, and read it: rows of AdamW, and whole tensors of Muon."""
    optimizers = {"adamw": 1e-5, "muon": 1e-3}  # muon enlarges rounding, see test_same_loss
    four = {
        f"{mesh}-{o}": (*MESHES[mesh], "trainer.devices=4", f"optimizer={o}") for mesh in MESHES for o in optimizers
    }
    one = {o: (f"optimizer={o}",) for o in optimizers}
    words = (*TINY, *STEPS, "model.n_heads=4", "model.d_ff=64", "match=none", "stabilizer=[clip,ema]")
    for cases, ranks in ((one, 1), (four, 4)):
        listed = [(name, [*words, *more, f"out={tmp_path}", f"name={name}"]) for name, more in cases.items()]
        in_one_gang(tmp_path / "log", listed, ranks)
    for step, ranks in ((2, 1), (4, 2), (2, 4)):
        resumed = []
        for name, (*mesh, _, _) in four.items():
            back_to(tmp_path / name, step)
            devices = {1: ("strategy=single",), 2: ("strategy=tensor", "strategy.degree=null"), 4: mesh}[ranks]
            resumed.append((name, [f"resume={tmp_path / name}", *devices, f"trainer.devices={ranks}"]))
        in_one_gang(tmp_path / "log", resumed, ranks)
        for name in four:
            optimizer = name.rpartition("-")[2]
            for own, theirs in zip(rows(tmp_path / optimizer), rows(tmp_path / name), strict=True):
                assert theirs == pytest.approx(own, abs=optimizers[optimizer]), f"{name} on {ranks} from step {step}"


def test_run_id_is_that_of_one_device() -> None:
    from ablatio.config.compose import compose_run
    from ablatio.training.run_folder import run_id

    alone, together = (compose_run([*TINY, *words]).config for words in ((), TWO))
    assert run_id(alone) == run_id(together)
