"""Preference tuning with any `alignment` method that trains on pairs, rankings or labeled answers."""

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from ablatio import rule
from ablatio.data.cache_store import get_or_build, key_of
from ablatio.errors import UserError
from ablatio.model.cost.flops import Work
from ablatio.model.example import Loss
from ablatio.model.language_model import LanguageModel
from ablatio.model.number_format import compute_dtype
from ablatio.model.ranks import ranks
from ablatio.model.task import Task
from ablatio.registry import kinds
from ablatio.registry.kinds import tasks
from ablatio.storage.atomic_write import write_bytes
from ablatio.training.task_context import TaskContext

from ._answers import Answers, AnswerSet, RatedAnswers, TokenizedAnswer, UnitBatches, chunks, example_of

AT_ONCE = 8  # answers per batch when the reference or a validation scores them


@tasks.register("preference", paper="arXiv:2305.18290")
class Preference(Task):
    """The loss of `alignment` on sums of log p(token | prompt, answer so far) over the tokens of an answer.

    The reference is the model before its first step; its log-probabilities are computed once and cached on disk.
    The main score is the share of held-out pairs for which training has raised the log-probability of the better answer
    more than that of the worse one, which is comparable between all methods.
    """

    accepts, template, needs = "feedback", True, ("alignment=dpo",)
    scores, main, better = ("accuracy", "margin", "chosen_change", "rejected_change"), "accuracy", "higher"

    def __init__(
        self,
        setup: TaskContext,
        *,
        pairs: Annotated[Literal["all", "extremes"], "pairs of a prompt's answers: all, or best against worst"] = "all",
        too_long: Annotated[
            Literal["cut", "drop", "refuse"],
            "a prompt too long for its answers: cut its beginning, leave it out, or stop the run",
        ] = "cut",
    ) -> None:
        self.setup, self.pair_choice = setup, pairs
        self.method = setup.part("alignment")
        facts = kinds.alignments[setup.config["alignment"]["name"]].facts
        self.data, self.moves_reference = facts["data"], facts["moves_reference"]
        self.samples_rejected = facts["rejected"] == "reference"
        self.asked: list[str] = facts["asks"]["loss"]
        self.uses_reference = any(word.startswith("ref_") for word in self.asked) and not self.moves_reference
        self.set = AnswerSet(setup, too_long)
        self.tokenizer, self.content = self.set.tokenizer, self.set.content
        self.held_out = [p for line in self.set.judged["validation"] for p in self._pairs_of(line)]
        self.units = [unit for line in self.set.judged["train"] for unit in self._units_of(line)]
        self.kl_answers = self._add_kl_answers() if "kl_logps" in self.asked else []
        self.content["units"] = len(self.units)
        self.reference: LanguageModel | None = None
        self.shares_prompts = True  # True if a prompt is encoded once for all of its answers
        # Log-probabilities of the reference, one answer after another, and where each answer's begin (-1: none).
        self.said: np.ndarray = np.zeros(0, dtype=np.float32)
        self.starts: np.ndarray = np.zeros(0, dtype=np.int64)

    def _pairs_of(self, line: RatedAnswers) -> list[tuple[int, int]]:
        """Pairs (better, worse) of answer indices; equal scores form no pair."""
        ranked = sorted(zip(line.scores, line.members, strict=True), key=lambda pair: -pair[0])
        if self.pair_choice == "extremes":
            ranked = [ranked[0], ranked[-1]]
        return [(a, b) for (s, a), (t, b) in combinations(ranked, 2) if s > t]

    def _units_of(self, line: RatedAnswers) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        """Units of a line, (answer indices, scores): a pair, a ranking, or one answer with 1 if it is desirable.

        An answer is desirable if it scores above the mean of its line; a lone one, if it scores above 0.5.
        """
        if self.data == "pairs":
            return [(pair, (1.0, 0.0)) for pair in self._pairs_of(line)]
        if self.data == "rankings":
            return [(line.members, line.scores)]
        middle = sum(line.scores) / len(line.scores) if len(set(line.scores)) > 1 else 0.5
        return [((i,), (float(s > middle),)) for i, s in zip(line.members, line.scores, strict=True)]

    def _add_kl_answers(self) -> list[int]:
        """For each unit, add an answer to another prompt after its own (KTO's KL estimate); return their indices.

        It is the answer of the next unit with another prompt. The units are put in an order in which neighbors have
        different prompts, the first answers of all prompts before the second ones, so that each answer is used once.
        Raises UserError if there is only one prompt.
        """
        prompts = [tuple(line.source.prompt) for line in self.set.judged["train"] for _ in self._units_of(line)]
        counts, ranks = Counter[Any](), list[int]()
        for prompt in prompts:
            counts[prompt] += 1
            ranks.append(counts[prompt])
        order = sorted(range(len(prompts)), key=ranks.__getitem__)
        self.units, prompts = [self.units[i] for i in order], [prompts[i] for i in order]
        made = []
        for (members, _), stranger in zip(self.units, _next_different(prompts), strict=True):
            own, other = self.set.answers[members[0]], self.set.answers[self.units[stranger][0][0]]
            room = self.setup.length + 1
            # A prompt that is too long for the answer is cut at its beginning, after the token that opens a document.
            over = min(max(0, own.first + other.length - room), own.first - 2)
            prompt = np.append(own.ids[:1], own.ids[1 + over : own.first])
            ids = np.concatenate([prompt, other.ids[other.first :]])[:room]
            made.append(len(self.set.answers))
            self.set.answers.append(TokenizedAnswer(ids, len(prompt)))
        return made

    def attach(self, model: LanguageModel) -> None:
        """Hold a second model if the reference is updated; it is saved in checkpoints."""
        if self.moves_reference:
            self.reference = copy.deepcopy(model).eval().requires_grad_(False)

    def prepare(self, model: LanguageModel) -> None:
        """Compute the reference's log-probabilities of held-out answers and of those that the method compares with it.

        The result is cached under a hash of the weights, the tokens and the precision.
        """
        mode, self.shares_prompts = model.training, model.shared_prefix
        model.eval()
        if self.reference is not None:
            self.reference.load_state_dict(model.state_dict())
            self.reference.to(next(model.parameters()).device)
        if self.samples_rejected:
            self._write_rejected(model)
        weights = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            # The whole model counts: the cache must not serve log-probabilities of other weights.
            weights.update(name.encode() + tensor.detach().cpu().float().numpy().tobytes())
        device = next(model.parameters()).device
        precision = str(compute_dtype(device, torch.float32))
        key = key_of(
            "reference", weights.hexdigest(), self.set.digest(), str(self._wanted()), str(device.type), precision
        )
        folder = self.setup.cache / "reference" / key
        self.starts = np.array(get_or_build(folder, lambda f: self._compute_reference(model, device, f))["starts"])
        self.said = np.fromfile(folder / "logps.bin", dtype=np.float32)
        model.train(mode)

    def _wanted(self) -> list[int]:
        """Indices of the answers whose reference log-probabilities are needed."""
        trained = [i for members, _ in self.units for i in members] if self.uses_reference else []
        return sorted({i for pair in self.held_out for i in pair} | set(trained) | set(self.kl_answers))

    @torch.no_grad()
    def _compute_reference(self, model: LanguageModel, device: torch.device, folder: Path) -> dict[str, Any]:
        starts, pieces, at = [-1] * len(self.set.answers), [], 0
        wanted = self.set.arranged(self._wanted())
        for group in chunks(len(wanted), AT_ONCE):
            members = [wanted[i] for i in group]
            logps = example_of(self.set.batch(members)).to(device).token_logprobs(model).logps.float().cpu().numpy()
            for i, row in zip(members, logps, strict=True):
                n = self.set.answers[i].length
                starts[i], at = at, at + n
                pieces.append(row[:n])
        write_bytes(folder / "logps.bin", np.concatenate(pieces).astype(np.float32).tobytes())
        return {"starts": starts}

    def _write_rejected(self, model: LanguageModel) -> None:
        """Replace the worse answer of each pair by one sampled from the model: deterministic in its weights."""
        from ablatio.data.chat import sign_id
        from ablatio.model.decoding.generate import Sampling, generate

        stop = sign_id(self.tokenizer, self.set.form.end)
        for group in chunks(len(self.units), AT_ONCE):
            held = [self.units[i][0] for i in group]
            better = [self.set.answers[pair[0]] for pair in held]
            room = min(self.setup.length + 1 - a.first for a in better)
            prompts = [a.ids[: a.first].tolist() for a in better]
            longest = min(room - 1, max(a.length for a in better))
            found = generate(model, prompts, max(0, longest), Sampling(seed=self.setup.seeds.data + group[0]), stop)
            for pair, a, new in zip(held, better, found, strict=True):
                ids = np.array([*a.ids[: a.first].tolist(), *new, stop], dtype=a.ids.dtype)
                self.set.answers[pair[1]] = TokenizedAnswer(ids, a.first)

    @property
    def training(self) -> UnitBatches:
        return UnitBatches(self.setup, len(self.units), self._batch)

    def validation(self, length: int | None = None, tokens: int | None = None) -> list[dict[str, Tensor]]:
        pairs = self.held_out
        groups = ([pairs[i] for i in group] for group in chunks(len(pairs), AT_ONCE))
        return [self._with_reference(self.set.batch([p[0] for p in g] + [p[1] for p in g])) for g in groups]

    def _batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Batch of units.  Pairs: better answers, then worse ones.  Rankings: K adjacent.  Labeled: with labels."""
        units = [self.units[i] for i in numbers]
        if self.data == "pairs":
            return self._with_reference(self.set.batch([m[0] for m, _ in units] + [m[1] for m, _ in units]))
        most = max(len(members) for members, _ in units)
        # Shorter rankings are filled with their first answer, which `present` then hides.
        index = [i for members, _ in units for i in (*members, *members[:1] * (most - len(members)))]
        kl_answers = [self.kl_answers[i] for i in numbers] if self.kl_answers else []
        made = self._with_reference(self.set.batch(index + kl_answers))
        rows = [(*scores, *(0.0,) * (most - len(scores))) for _, scores in units]
        present = [[i < len(members) for i in range(most)] for members, _ in units]
        return made | {"scores": torch.tensor(rows), "present": torch.tensor(present)}

    def _with_reference(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the reference's log-probability of each token, 0 where it was not computed."""
        found = torch.zeros_like(batch["mask"])
        for row, i in enumerate(batch["index"].tolist()):
            at = int(self.starts[i]) if len(self.starts) else -1
            if at >= 0:
                n = self.set.answers[i].length
                found[row, :n] = torch.from_numpy(self.said[at : at + n])
        return batch | {"reference": found}

    def tokens(self, steps: int) -> int:
        """Average tokens of a unit times the number of units."""
        lengths = sum(len(self.set.answers[i].ids) for members, _ in self.units for i in members)
        return round(self.setup.plan.step(steps)[0] * lengths / len(self.units))

    def work(self, steps: int) -> Work:
        """Training passes, and reference passes: once per answer, or in every step if the reference is updated."""
        # Passes over the data, also a part of one.
        share = self.setup.plan.step(steps)[0] / len(self.units)
        learnt = [Work(learnt=p, learnt_said=s) for p, s in (self._tokens_read(members) for members, _ in self.units)]
        asked = [members for members, _ in self.units] if self.moves_reference else [(i,) for i in self._wanted()]
        read = [Work(read=p, read_said=s) for p, s in map(self._tokens_read, asked)]
        once = 1.0 if not self.moves_reference else share
        return sum(learnt, Work()) * share + sum(read, Work()) * once

    def _tokens_read(self, members: Sequence[int]) -> tuple[int, int]:
        """(tokens read, tokens that predict an answer) of a unit; a prompt counts once if the model shares prefixes."""
        answers = [self.set.answers[i] for i in members]
        starts = {a.start.tobytes(): len(a.start) for a in answers} if self.shares_prompts else {}
        predicted = sum(a.length for a in answers)
        prompts = sum(starts.values()) if self.shares_prompts else sum(len(a.start) for a in answers)
        return predicted + prompts, predicted

    def example(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Answers:
        return example_of(batch)

    def begin_step(self, model: LanguageModel, step: int) -> None:
        """Update the reference towards the policy, between two steps, if the method does so."""
        rate = self.method.reference_rate(step) if self.reference is not None and step else 0.0
        if rate and self.reference is not None:
            with torch.no_grad():
                for own, new in zip(self.reference.parameters(), model.parameters(), strict=True):
                    own.lerp_(new, rate)

    def loss(self, model: LanguageModel, example: Answers) -> Loss:
        words = self.words(model, example)
        # A method may compare the answers of a batch: all ranks compute the loss of all rows, each with its gradient.
        given = {word: ranks().gather_rows(words[word]) for word in self.asked}
        loss, metrics = self.method.loss(**given)
        # The number of units, so that accumulated batches of unequal size weigh by it.
        own = len(example.index) // 2 if self.data == "pairs" else len(example.more["scores"])
        share = ranks().mean(loss.new_full((), float(own)))
        return Loss(loss * share, share, metrics)

    def words(self, model: LanguageModel, example: Answers) -> dict[str, Tensor]:
        """The inputs that a method may take, for this batch (ablatio.registry.kinds.alignment_inputs)."""
        collision = any(word.endswith("collision") for word in self.asked)
        policy = example.token_logprobs(model, collision)
        reference = example.more["reference"]
        if self.reference is not None:
            with torch.no_grad():
                reference = example.token_logprobs(self.reference).logps
        if self.data == "pairs":
            return self._pair_inputs(policy.logps, reference, example.mask, policy.collision)
        own = example.more["scores"].numel()  # the rows after these are the answers for the KL estimate
        shape = example.more["scores"].shape
        found = {
            "logps": policy.logps[:own].sum(1).view(shape),
            "ref_logps": reference[:own].sum(1).view(shape),
            "length": example.mask[:own].sum(1).view(shape),
            "scores": example.more["scores"],
            "present": example.more["present"],
        }
        if self.data == "rankings":
            return found
        kl = {"kl_logps": policy.logps[own:].sum(1).detach(), "ref_kl_logps": reference[own:].sum(1)}
        flat = {name: value[:, 0] for name, value in found.items()}
        return flat | kl | {"labels": flat["scores"] > 0}

    @staticmethod
    def _pair_inputs(logps: Tensor, reference: Tensor, mask: Tensor, collision: Tensor | None) -> dict[str, Tensor]:
        half = len(logps) // 2
        found: dict[str, Tensor] = {}
        for which, rows in (("chosen", slice(0, half)), ("rejected", slice(half, None))):
            found |= {
                which: logps[rows].sum(1),
                f"ref_{which}": reference[rows].sum(1),
                f"{which}_length": mask[rows].sum(1),
                f"{which}_tokens": logps[rows],
                f"ref_{which}_tokens": reference[rows],
                f"{which}_mask": mask[rows],
            }
            if collision is not None:
                found[f"{which}_collision"] = collision[rows]
        return found

    @torch.no_grad()
    def score(
        self,
        model: LanguageModel,
        batches: Sequence[dict[str, Tensor]],
        device: torch.device,
        between: Callable[[int], None],
    ) -> dict[str, float]:
        mode, found = model.training, []
        model.eval()
        try:
            for number, batch in enumerate(batches):
                example = example_of(batch).to(device)
                # In float64: the sum over an answer of small differences decides the sign.
                change = (example.token_logprobs(model).logps - example.more["reference"]).double().sum(1)
                # Better answers first, then the worse ones, as the batch was made.
                found.append(change.view(2, -1))
                between(number + 1)
        finally:
            model.train(mode)
        chosen, rejected = torch.cat(found, 1).cpu()
        margin = chosen - rejected
        right = (margin > 1e-4).double() + 0.5 * (margin.abs() <= 1e-4)  # ties: before training all margins are 0
        values = right, margin, chosen, rejected
        return {name: float(v.mean()) for name, v in zip(self.scores, values, strict=True)} | {"pairs": len(margin)}

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.reference.state_dict()) if self.reference is not None else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if self.reference is not None:
            self.reference.load_state_dict(state)


def _next_different(prompts: Sequence[Any]) -> list[int]:
    """For each prompt, return the index of the next different one, cyclically. Raises UserError if all are the same."""
    count = len(prompts)
    found, following = [0] * count, -1
    for i in range(2 * count - 1, -1, -1):  # twice around: the last prompts are followed by the first ones
        if prompts[i % count] != prompts[(i + 1) % count]:
            following = (i + 1) % count
        found[i % count] = following
    if following < 0:
        raise UserError(
            f"all {count} training answers are answers to one prompt, and this method compares them with answers to "
            "other prompts\n    try: alignment=dpo, or a source with more prompts"
        )
    return found


rule(
    when="task.name == 'preference' and facts.alignment.data == 'prompts'",
    why="alignment={alignment.name} trains on rewards of answers that the model samples, but task=preference provides "
    "given answers",
    fix="alignment=dpo",
    where="alignment",
)
