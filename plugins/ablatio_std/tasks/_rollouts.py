"""Rollouts for policy methods: sampling answers to prompts, scoring them, and replacing uninformative prompts."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ablatio import decodes, rewards
from ablatio.data.types import Tokenizer
from ablatio.errors import UserError
from ablatio.model.cost.flops import Work
from ablatio.model.decoding.logits import LogitsProcessors
from ablatio.model.decoding.rollout import Rollout, next_logits, sample_rollouts, streams
from ablatio.model.language_model import LanguageModel
from ablatio.model.ranks import ranks
from ablatio.model.rl.answers import Answer, ReasoningStep, judged, one_by_one
from ablatio.training.task_context import TaskContext

from ._prompts import ChatPrompts, Prompt, TextPrompts

MOST_LEFT_OUT = 32  # prompts examined for each one that is hard enough, before the run stops with an error
log = logging.getLogger("ablatio")
Reward = Callable[[Sequence[Answer]], Any]


@dataclass(slots=True)
class ScoredRollout:
    """Sampled answers with their scores; the answers to a prompt are adjacent.

    prompts  G prompts;  rollout, texts, scores (N,), steps: of N = G x group answers; steps only if the reward is
             per step
    """

    prompts: list[Prompt]
    rollout: Rollout
    texts: list[Answer]
    scores: Tensor
    steps: list[list[ReasoningStep]] | None

    @classmethod
    def joined(cls, parts: "Sequence[ScoredRollout]") -> "ScoredRollout":
        """Concatenate rollouts."""
        steps = [p.steps for p in parts if p.steps is not None]
        return cls(
            [prompt for p in parts for prompt in p.prompts], Rollout.joined([p.rollout for p in parts]),
            [text for p in parts for text in p.texts], torch.cat([p.scores for p in parts]),
            [s for found in steps for s in found] if len(steps) == len(parts) else None,
        )  # fmt: skip

    def select_prompts(self, places: Sequence[int]) -> "ScoredRollout":
        """Select the answers to the prompts at these indices."""
        group = len(self.texts) // len(self.prompts)
        rows = [place * group + k for place in places for k in range(group)]
        steps = None if self.steps is None else [self.steps[row] for row in rows]
        return ScoredRollout([self.prompts[i] for i in places], self.rollout[rows], [self.texts[r] for r in rows],
                     self.scores[rows], steps)  # fmt: skip


@dataclass(slots=True)
class RolloutSampler:
    """Samples answers from a model and scores them.

    Ranks that share the rows of a batch sample and score those of their own, and get those of the others: every rank
    returns what one device does.  All of them hold all weights of the model meanwhile.

    compares  the reward compares the answers to a prompt
    processors  change the distribution of the answers that training uses
    words     parameter names of the method's `advantages`
    asked     number of prompts that training has used so far
    work      tokens that training has passed through models so far
    left_out  prompts left out as too easy, per prompt of the last rollout
    redrawn   prompts replaced because their answers had equal rewards, per prompt of the last rollout
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
    processors: LogitsProcessors | None = None
    compares: bool = False
    asked: int = 0
    work: Work = field(default_factory=Work)
    left_out: float = 0.0
    redrawn: float = 0.0

    def __call__(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        stream: int | None,
        *,
        group: int = 1,
        first: int = 0,
        processors: LogitsProcessors | None = None,
    ) -> ScoredRollout:
        """Sample `group` answers per prompt with the random streams of rollout `stream`, from row `first` on.

        `stream` None: greedy answers; `processors` change what random ones are drawn from.
        """
        rollout = self._sampled(model, prompts, stream, group, first, processors)
        texts = self.texts(prompts, rollout, group)
        return ScoredRollout(list(prompts), rollout, texts, *self._judged(texts))

    def _sampled(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        stream: int | None,
        group: int,
        first: int,
        processors: LogitsProcessors | None,
    ) -> Rollout:
        """Sample the answers, arguments as above; each rank those of its rows, with their own random streams."""
        own = ranks().rows(len(prompts) * group)
        # Two ranks may share the answers to one prompt; a rank's rows are groups of `together` answers to one prompt.
        together = math.gcd(group, own.start, own.stop)
        asked = [prompts[row // group].ids for row in range(own.start, own.stop, together)]
        seed, count = self.setup.seeds.data, own.stop - own.start
        # A random stream for each row, so that an answer does not depend on the others of its batch.
        draws = None if stream is None else streams(seed, stream, count, self.answer_tokens, first + own.start)
        return sample_rollouts(
            model, asked, draws, stop=self.stop, new_tokens=self.answer_tokens,
            group=together, temperature=self.temperature,
            processors=None if draws is None else processors,
        ).gathered()  # fmt: skip

    def _judged(self, texts: Sequence[Answer]) -> tuple[Tensor, list[list[ReasoningStep]] | None]:
        """Score answers; each rank those of its rows, or the first one all of them if the reward compares them."""
        if ranks().world == 1:
            return judged(self.judge, self.judge_name, texts)
        own = texts[slice(0, len(texts) * (ranks().replica == 0)) if self.compares else ranks().rows(len(texts))]
        scores, steps = judged(self.judge, self.judge_name, own) if own else (torch.zeros(0), None)
        plain = None if steps is None else [[[step.end, step.score] for step in row] for row in steps]
        parts = ranks().collected([scores.tolist(), plain])[:: ranks().world // ranks().replicas]
        # All get what the first rank has: a reward need not give the same number twice.
        found, rows = ranks().told(lambda: [[x for p in parts for x in p[place] or ()] for place in (0, 1)])
        return torch.tensor(found), [[ReasoningStep(*step) for step in row] for row in rows] or None

    def sample_and_count(self, *asked: Any, **how: Any) -> ScoredRollout:
        """Sample answers and count the work: each prompt is read once, and each answer without its last token."""
        drawn = self(*asked, **how, processors=self.processors)
        answer_tokens = float(drawn.rollout.mask.sum())
        read = sum(len(p.ids) for p in drawn.prompts) + answer_tokens - len(drawn.texts)
        self.work += Work(read=read, read_said=len(drawn.prompts) + answer_tokens - len(drawn.texts))
        return drawn

    def training(
        self, model: LanguageModel, reference: LanguageModel, method: Any, stream: int, count: int
    ) -> ScoredRollout:
        """Sample answers to `count` new prompts; those without any advantage are replaced if the method asks for it."""
        start, group = self.asked, method.group
        self.left_out = self.redrawn = 0.0
        drawn = self.sample_and_count(model, self._next(reference, method, count), stream, group=group)
        for turn in range(1, 1 + getattr(method, "resample", 0)):
            good = self._informative(method, drawn)
            if len(good) == count:
                break
            self.redrawn += (count - len(good)) / count
            prompts = self._next(reference, method, count - len(good))
            # Each round has its own random streams, so that its answers do not depend on how many were replaced.
            first = turn * count * group
            more = self.sample_and_count(model, prompts, stream, group=group, first=first)
            drawn = ScoredRollout.joined([drawn.select_prompts(good), more] if good else [more])
        else:
            self._warn_of_flat_groups(method, drawn, start)
        return drawn

    def _informative(self, method: Any, drawn: ScoredRollout) -> list[int]:
        """Indices of the prompts of which some answer has a nonzero advantage."""
        mask = drawn.rollout.mask
        words = {"rewards": drawn.scores.to(mask), "mask": mask, "max_length": self.answer_tokens}
        # The method itself says what gives no gradient: it may use more of the rollout than the rewards.
        found = method.advantages(**{w: x for w, x in words.items() if w in self.words}).advantages
        return [int(i) for i in found.view(len(drawn.prompts), -1).any(1).nonzero()[:, 0]]

    def _warn_of_flat_groups(self, method: Any, drawn: ScoredRollout, start: int) -> None:
        limit = getattr(method, "resample", 0)
        left = len(drawn.prompts) - len(self._informative(method, drawn)) if limit else 0
        if left:
            log.warning(
                "%d of %d prompts still give no gradient after %d rounds (%d prompts used): all answers to each have "
                "the same reward\n    try: easier or harder prompts, a finer reward, or alignment.resample=%d",
                left, len(drawn.prompts), limit, self.asked - start, 2 * limit,
            )  # fmt: skip

    def _next(self, reference: LanguageModel, method: Any, count: int) -> list[Prompt]:
        """The next prompts, without those that the method finds too easy by the reference's next-token distribution."""
        least = getattr(method, "least_entropy", 0.0)
        found: list[Prompt] = []
        seen: list[float] = []
        while len(found) < count:
            candidates = self.prompts(range(self.asked, self.asked + count - len(found)))
            self.asked += len(candidates)
            if not least:
                return candidates
            self.work += Work(read=sum(len(p.ids) for p in candidates), read_said=len(candidates))
            hard = method.hardness(next_logits(reference, [p.ids for p in candidates]))
            hardness = ranks().told(hard.tolist)  # one rank decides: another machine may round otherwise
            found += [p for p, h in zip(candidates, hardness, strict=True) if h >= least]
            seen += hardness
            # Bounded: a threshold that no place reaches would search for ever.
            if len(seen) >= MOST_LEFT_OUT * count and len(found) < count:
                middle = sorted(seen)[len(seen) // 2]
                raise UserError(
                    f"alignment.least_entropy={least:g}: only {len(found)} of {len(seen)} places in the text have that "
                    f"much entropy under the reference; half of them have at most {middle:.2f} nats\n"
                    f"    try: alignment.least_entropy={middle:.1f}"
                )
        self.left_out += len(seen) / count - 1
        return found

    def texts(self, prompts: Sequence[Prompt], rollout: Rollout, group: int) -> list[Answer]:
        """The answers of a rollout as text, as rewards take them."""
        answers, rollout = [], rollout.cpu()  # once: each row is read below
        for row in range(len(rollout)):
            prompt, ids = prompts[row // group], rollout.answer(row)
            text = self.decode(rollout.answer(row, self.stop))
            truth = prompt.truth if prompt.truth is not None else self.decode(prompt.following)
            question = self.decode(prompt.ids)
            answers.append(Answer(question, text, prompt.ids, ids, truth, {"following": prompt.following}))
        return answers

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; ids beyond the tokenizer's, as sentinels, are left out."""
        return self.tokenizer.decode([i for i in ids if i < self.tokenizer.vocab_size])

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked, "work": asdict(self.work)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.asked, self.work = int(state["asked"]), Work(**state["work"])


INSIDE = "\n    try: ablatio train task=policy"


def reward_of(setup: TaskContext, name: str, tokenizer: Tokenizer) -> Reward:
    """Build the config's reward as a function of answers."""

    def open_run(path: str) -> Callable[[Sequence[Answer]], Tensor]:
        if setup.open_reward is None:
            raise UserError(f"reward={name} can only be used inside a run, which loads the reward model{INSIDE}")
        return setup.open_reward(path, tokenizer)

    def open_model(path: str, key: str) -> Any:
        if setup.open_model is None:
            raise UserError(f"reward={name} can only be used inside a run, which loads its model{INSIDE}")
        return setup.open_model(path, key)

    if rewards[name].wiring == ("answer", "other"):
        raise UserError(
            f"reward={name} compares two answers; task=policy expects a reward of one answer\n"
            f"    try: reward=ranking reward.function={name}"
        )
    made: Any = setup.part("reward", open_run=open_run, open_model=open_model)
    return one_by_one(made, name) if rewards[name].wiring == ("answer",) else made


def processors_of(setup: TaskContext) -> LogitsProcessors | None:
    """Logits processors of the config's decode part; None if it has none."""
    node = setup.config.get("decode")
    if not node:
        return None
    name, part = node["name"], setup.part("decode")
    processors: LogitsProcessors | None = getattr(part, "processors", None)
    if processors is None or not decodes[name].facts["samples"]:
        raise UserError(
            f"decode={name}: the answers of a policy are sampled, token by token, from its own logits\n"
            "    try: decode=sample decode.top_p=0.95"
        )
    # One temperature for sampling and for log-probabilities: the ratio of new to old probabilities would be wrong else.
    if processors.temperature != 1:
        raise UserError(
            f"decode.temperature={processors.temperature:g}: the temperature of a policy is task.temperature, which "
            f"its log-probabilities have, too\n    try: task.temperature={processors.temperature:g}"
        )
    return processors


def rule_of(name: str) -> Reward:
    """Build a reward rule by name, with its default knobs; UserError if it is not a function of one answer."""
    if rewards[name].wiring != ("answer",):
        known = [e.name for e in rewards if e.wiring == ("answer",)]
        raise UserError(
            f"task.gold={name} is not a function of one answer; those are {', '.join(known)}\n"
            f"    try: task.gold={known[0]}"
        )
    return one_by_one(rewards.build(name), name)
