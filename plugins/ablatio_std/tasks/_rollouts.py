"""What a policy method learns from: answers to prompts that are worth it, with what the reward says of them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ablatio import rewards
from ablatio.data.types import Tokenizer
from ablatio.errors import UserError
from ablatio.model.cost.flops import Work
from ablatio.model.decoding.rollout import Rollout, next_logits, sample_rollouts, streams
from ablatio.model.language_model import LanguageModel
from ablatio.model.rl.answers import Answer, ReasoningStep, judged, one_by_one
from ablatio.training.task_context import TaskContext

from ._prompts import ChatPrompts, Prompt, TextPrompts

MOST_LEFT_OUT = 32  # prompts that may be too easy for each one that is not
log = logging.getLogger("ablatio")
Reward = Callable[[Sequence[Answer]], Any]


@dataclass(slots=True)
class Drawn:
    """Answers to prompts, `group` of them side by side, and what the reward says of each."""

    prompts: list[Prompt]
    rollout: Rollout
    texts: list[Answer]
    scores: Tensor
    steps: list[list[ReasoningStep]] | None

    @classmethod
    def joined(cls, parts: "Sequence[Drawn]") -> "Drawn":
        steps = [p.steps for p in parts if p.steps is not None]
        return cls(
            [prompt for p in parts for prompt in p.prompts], Rollout.joined([p.rollout for p in parts]),
            [text for p in parts for text in p.texts], torch.cat([p.scores for p in parts]),
            [s for found in steps for s in found] if len(steps) == len(parts) else None,
        )  # fmt: skip

    def of_prompts(self, places: Sequence[int]) -> "Drawn":
        """The answers to some of the prompts."""
        group = len(self.texts) // len(self.prompts)
        rows = [place * group + k for place in places for k in range(group)]
        steps = None if self.steps is None else [self.steps[row] for row in rows]
        return Drawn([self.prompts[i] for i in places], self.rollout[rows], [self.texts[r] for r in rows],
                     self.scores[rows], steps)  # fmt: skip


@dataclass(slots=True)
class Asking:
    """Asks a model: prompts in their order, answers from the streams of one rollout, judged.

    words    what the method's advantages are made of
    asked    prompts that training has taken so far
    work     what training has passed through models so far
    left_out, redrawn  of the last rollout, for each of its prompts: those too easy before it, and those whose answers
             all earned the same
    """

    setup: TaskContext
    prompts: ChatPrompts | TextPrompts
    tokenizer: Tokenizer
    judge: Reward
    judge_name: str
    words: Sequence[str]
    stop: int
    answer_tokens: int
    temperature: float
    asked: int = 0
    work: Work = field(default_factory=Work)
    left_out: float = 0.0
    redrawn: float = 0.0

    def __call__(
        self, model: LanguageModel, prompts: Sequence[Prompt], stream: int | None, *, group: int = 1, first: int = 0
    ) -> Drawn:
        """Answers drawn from the streams of rollout number `stream` from row `first` on, or the likeliest ones."""
        seed, rows = self.setup.seeds.data, len(prompts) * group
        draws = None if stream is None else streams(seed, stream, rows, self.answer_tokens, first)
        rollout = sample_rollouts(
            model, [p.ids for p in prompts], draws, stop=self.stop, new_tokens=self.answer_tokens,
            group=group, temperature=self.temperature,
        )  # fmt: skip
        texts = self.texts(prompts, rollout, group)
        return Drawn(list(prompts), rollout, texts, *judged(self.judge, self.judge_name, texts))

    def counted(self, *asked: Any, **how: Any) -> Drawn:
        """The same in training, where it is work: prompts are read once, and each answer's tokens but for its last."""
        drawn = self(*asked, **how)
        said = float(drawn.rollout.mask.sum())
        read = sum(len(p.ids) for p in drawn.prompts) + said - len(drawn.texts)
        self.work += Work(read=read, read_said=len(drawn.prompts) + said - len(drawn.texts))
        return drawn

    def training(self, model: LanguageModel, reference: LanguageModel, method: Any, stream: int, count: int) -> Drawn:
        """Answers to `count` new prompts; those that teach nothing are replaced, where the method asks for that."""
        start, group = self.asked, method.group
        self.left_out = self.redrawn = 0.0
        drawn = self.counted(model, self._next(reference, method, count), stream, group=group)
        for turn in range(1, 1 + getattr(method, "resample", 0)):
            good = self._teaching(method, drawn)
            if len(good) == count:
                break
            self.redrawn += (count - len(good)) / count
            prompts = self._next(reference, method, count - len(good))
            first = turn * count * group  # a round has streams of its own, however many answers it draws
            more = self.counted(model, prompts, stream, group=group, first=first)
            drawn = Drawn.joined([drawn.of_prompts(good), more] if good else [more])
        else:
            self._tell_flat(method, drawn, start)
        return drawn

    def _teaching(self, method: Any, drawn: Drawn) -> list[int]:
        """Prompts whose answers have any advantage over one another."""
        mask = drawn.rollout.mask
        words = {"rewards": drawn.scores.to(mask), "mask": mask, "max_length": self.answer_tokens}
        found = method.advantages(**{w: x for w, x in words.items() if w in self.words}).advantages
        return [int(i) for i in found.view(len(drawn.prompts), -1).any(1).nonzero()[:, 0]]

    def _tell_flat(self, method: Any, drawn: Drawn, start: int) -> None:
        limit = getattr(method, "resample", 0)
        left = len(drawn.prompts) - len(self._teaching(method, drawn)) if limit else 0
        if left:
            log.warning(
                "%d of %d prompts still teach nothing after %d rounds (%d prompts asked): all answers to each earned "
                "the same\n    try: easier or harder prompts, a reward with more steps, or alignment.resample=%d",
                left, len(drawn.prompts), limit, self.asked - start, 2 * limit,
            )  # fmt: skip

    def _next(self, reference: LanguageModel, method: Any, count: int) -> list[Prompt]:
        """The next prompts, without those that the method holds for too easy by what the reference says comes next."""
        least = getattr(method, "least_entropy", 0.0)
        found: list[Prompt] = []
        seen: list[float] = []
        while len(found) < count:
            some = self.prompts(range(self.asked, self.asked + count - len(found)))
            self.asked += len(some)
            if not least:
                return some
            self.work += Work(read=sum(len(p.ids) for p in some), read_said=len(some))
            hardness = method.hardness(next_logits(reference, [p.ids for p in some])).tolist()
            found += [p for p, h in zip(some, hardness, strict=True) if h >= least]
            seen += hardness
            if len(seen) >= MOST_LEFT_OUT * count and len(found) < count:
                middle = sorted(seen)[len(seen) // 2]
                raise UserError(
                    f"alignment.least_entropy={least:g}: of {len(seen)} places in the text {len(found)} are as hard as "
                    f"that for the reference, half of them have no more than {middle:.2f} nats\n"
                    f"    try: alignment.least_entropy={middle:.1f}"
                )
        self.left_out += len(seen) / count - 1
        return found

    def texts(self, prompts: Sequence[Prompt], rollout: Rollout, group: int) -> list[Answer]:
        made = []
        for row in range(len(rollout)):
            prompt, ids = prompts[row // group], rollout.answer(row)
            text = self.decode(rollout.answer(row, self.stop))
            truth = prompt.truth if prompt.truth is not None else self.decode(prompt.following)
            asked = self.decode(prompt.ids)
            made.append(Answer(asked, text, prompt.ids, ids, truth, {"following": prompt.following}))
        return made

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i < self.tokenizer.vocab_size])

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked, "work": asdict(self.work)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.asked, self.work = int(state["asked"]), Work(**state["work"])


def reward_of(setup: TaskContext, name: str, tokenizer: Tokenizer) -> Reward:
    """The config's reward, as a function of answers."""

    def open_run(path: str) -> Callable[[Sequence[Answer]], Tensor]:
        if setup.open_reward is None:
            raise UserError("a reward model is opened by a run, and this is none")
        return setup.open_reward(path, tokenizer)

    if rewards[name].wiring == ("answer", "other"):
        raise UserError(
            f"reward={name} says which of two answers is better\n    try: reward=ranking reward.function={name}"
        )
    made: Any = setup.part("reward", open_run=open_run)
    return one_by_one(made, name) if rewards[name].wiring == ("answer",) else made


def rule_of(name: str) -> Reward:
    """A rule by name, with its defaults; UserError where that is none."""
    if rewards[name].wiring != ("answer",):
        known = ", ".join(e.name for e in rewards if e.wiring == ("answer",))
        raise UserError(f"task.gold={name} came; a function of one answer was expected: {known}")
    return one_by_one(rewards.build(name), name)
