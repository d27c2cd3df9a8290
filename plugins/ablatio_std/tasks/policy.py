"""Learning from rewards: the model answers prompts, a reward judges the answers, a policy method learns from that."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import torch
from torch import Tensor

from ablatio import OptionOf, Positive, alignments, rule, sources
from ablatio.errors import UserError
from ablatio.model.cost.flops import Work
from ablatio.model.decoding.rollout import Rollout
from ablatio.model.language_model import LanguageModel, Loss
from ablatio.model.optimizer_step import OptimizerStep, SkipStep
from ablatio.model.parameter_roles import named_generator
from ablatio.model.rl.answers import Answer, one_by_one, token_rewards
from ablatio.model.rl.kl import kl_estimates, masked_mean
from ablatio.model.rl.policy_outputs import ValueHead, policy_outputs, tokens_read, values_of
from ablatio.model.task import Task
from ablatio.registry.kinds import tasks
from ablatio.training.task_context import TaskContext

from ._policy_evaluation import HeldOut
from ._prompts import ChatPrompts, TextPrompts
from ._rollout_metrics import MEASURES, OF_POLICY, Collapse, measured
from ._rollouts import Asking, Drawn, Reward, reward_of


@dataclass(frozen=True, slots=True)
class Part:
    """Which batch of its optimizer step this is."""

    number: int

    def to(self, device: torch.device | str) -> "Part":
        return self


@tasks.register("policy", paper="arXiv:2203.02155")
class Policy(Task):
    """Steps: answers to new prompts, their rewards, advantages, then `epochs` passes in `minibatches` steps each.

    `alignment` is the method (data = prompts), `reward` the judge.  A batch has `train.batch_size` answers; a
    rollout as many as its minibatches need.  The reference is the model before its first step; a critic is a head
    beside the output, trained with the policy.  Prompts are the questions of a source that
    gives conversations, or are cut out of its documents.  `gold` judges held-out answers too, and nothing is learned
    from it: what it says as the reward rises shows whether the reward is still a measure (arXiv:2210.10760).
    """

    accepts, main, better = "documents", "reward", "higher"
    scores = ("reward", "gold", "kl", "entropy", "answer_length")
    needs, copies = ("alignment=ppo", "reward=length"), 1
    metrics = (*MEASURES, "train/old_kl", "train/entropy", "train/clip_fraction")

    def __init__(
        self,
        setup: TaskContext,
        *,
        prompt_tokens: Annotated[int, Positive, "of a prompt that is cut out of a text"] = 16,
        answer_tokens: Annotated[int, Positive, "that an answer may have"] = 32,
        temperature: Annotated[float, Positive, "at which answers are drawn and judged"] = 1.0,
        held_out: Annotated[int, Positive, "prompts that a score is the mean of"] = 42,
        gold: Annotated[str | None, OptionOf("reward"), "a rule that judges beside; null: the reward itself"] = None,
    ) -> None:
        self.setup, self.prompt_tokens, self.answer_tokens = setup, prompt_tokens, answer_tokens
        self.temperature, self.held_out = temperature, held_out
        self.name = self._chosen("alignment", "ppo")
        entry = alignments[self.name]
        if entry.facts["data"] != "prompts":
            raise UserError(
                f"alignment={self.name} learns from {entry.facts['data']}, and task=policy has prompts\n"
                "    try: alignment=grpo"
            )
        self.method: Any = setup.part("alignment")
        self.asks: dict[str, list[str]] = entry.facts["asks"]
        asked = {word for words in self.asks.values() for word in words}
        self.critic, self.greedy = bool(asked & {"values", "old_values"}), "greedy_rewards" in asked
        self.from_text = entry.facts["prompts"] == "text"
        self._find_prompts()
        self.asking = Asking(
            setup, self.prompts, self.tokenizer, *self._judge(), self.asks["advantages"], self.stop, answer_tokens,
            temperature,
        )  # fmt: skip
        self.collapse = Collapse(self.stop, self.asking.decode, float(setup.config["optimizer"].get("lr", 1e-3)))
        self.off_policy = getattr(self.method, "writer", "policy") == "reference"
        self.best_of = getattr(self.method, "best_of", None) or 1
        self.held_out_answers = HeldOut(self.asking, self.best_of, gold)
        train = setup.config["train"]
        self.per_step = int(train["batch_size"]) * int(train["accumulate"])
        self.answers = self.per_step * self.method.minibatches
        self._fits()
        self.reference: LanguageModel | None = None
        self.head: ValueHead | None = None
        self.rollout: Rollout | None = None
        self.words: dict[str, Any] = {}
        self.measures: dict[str, Tensor] = {}
        self.number, self.cursor, self.moved = -1, 0, 0.0

    @classmethod
    def uses_template(cls, config: Mapping[str, Any]) -> bool:
        """Questions of conversations are written in it; prompts that are cut out of a text are not."""
        from_text = alignments[config["alignment"]["name"]].facts["prompts"] == "text"
        return "conversations" in sources[config["source"]["name"]].facts["uses"] and not from_text

    def _find_prompts(self) -> None:
        """The questions of a source that gives conversations; else pieces of its documents."""
        setup, source = self.setup, self.setup.source()
        self.prompts: ChatPrompts | TextPrompts
        if self.uses_template(setup.config):
            self.prompts = chat = ChatPrompts(setup, source, setup.config["model"]["max_len"] - self.answer_tokens)
            self.tokenizer, self.stop, self.content = chat.tokenizer, chat.stop, chat.content
            return
        corpus, self.tokenizer = setup.corpus(source)
        self.stop = self.tokenizer.eos
        self.content = {"fingerprint": corpus.fingerprint, "key": corpus.key, **corpus.counts}
        where = self.prompt_tokens, self.answer_tokens, self.stop, setup.seeds.data
        self.prompts = TextPrompts(corpus, *where)

    def _chosen(self, kind: str, usual: str) -> str:
        node = self.setup.config.get(kind)
        if not node:
            raise UserError(f"task=policy needs a {kind}, and the config names none\n    try: {kind}={usual}")
        return str(node["name"])

    def _judge(self) -> tuple[Reward, str]:
        if self.from_text:  # the text itself says what is right
            return one_by_one(self._right, self.name), self.name
        name = self._chosen("reward", "length")
        return reward_of(self.setup, name, self.tokenizer), name

    def _right(self, answer: Answer) -> float:
        ids = answer.more["following"]
        ends = [len(self.tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
        return float(self.method.correct(answer.text, answer.truth, ends))

    def _fits(self) -> None:
        group, rows = self.method.group, self.per_step if self._whole else self.answers
        if rows % group:
            raise UserError(
                f"{rows} answers (train.batch_size x train.accumulate{'' if self._whole else ' x minibatches'}) are no "
                f"whole number of groups of alignment.group={group}\n    try: train.batch_size={group}"
            )
        longest, room = self.prompt_tokens + self.answer_tokens, int(self.setup.config["model"]["max_len"])
        if longest > room:
            raise UserError(
                f"a prompt of {self.prompt_tokens} tokens and an answer of {self.answer_tokens} are {longest}, and "
                f"model.max_len={room}\n    try: task.answer_tokens={max(1, room - self.prompt_tokens)}"
            )

    @property
    def _whole(self) -> bool:
        return bool(alignments[self.name].facts["whole_groups"])

    def attach(self, model: LanguageModel) -> None:
        if self.critic:
            model.value_head = ValueHead(model.lm_head.in_features)

    def prepare(self, model: LanguageModel) -> None:
        """The reference is the model as it is now."""
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)

    @property
    def training(self) -> "Numbers":
        return Numbers()

    def validation(self, length: int | None = None, tokens: int | None = None) -> list[dict[str, Any]]:
        """Held-out prompts in batches; each draws its answers from streams of its own."""
        limit, each = tokens or self.setup.config["data"]["val_tokens"], self.prompt_tokens + self.answer_tokens
        count = self.held_out if limit is None else max(1, limit // each)
        count = count if tokens else min(count, self.held_out)
        return [{"number": torch.tensor(i), "first": i, "count": min(16, count - i)} for i in range(0, count, 16)]

    def tokens(self, steps: int) -> int:
        """Tokens of prompts and answers, at most: how long answers are is only known when they are written."""
        return steps * self.per_step * (self.prompt_tokens + self.answer_tokens)

    @property
    def row_length(self) -> int:
        """Tokens of a prompt and its answer, at most."""
        asked = self.prompt_tokens if isinstance(self.prompts, TextPrompts) else self.prompts.longest
        return asked + self.answer_tokens

    def work(self, steps: int) -> Work:
        """Up to now: rollouts, what the reference and the critic say of them, and the passes that learn from them."""
        return self.asking.work

    def example(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Part:
        return Part(int(batch["number"]))

    def begin_step(self, model: LanguageModel, step: int) -> None:
        """A new rollout when the last one is used up, or when the policy has moved too far from it."""
        if self.best_of > 1 and self.rollout is not None:
            return  # nothing is learned from it
        self.cursor += 1
        stops = getattr(self.method, "stops", None)
        used = self.cursor >= self.method.epochs * self.method.minibatches
        if self.rollout is None or used or (stops is not None and stops(self.moved)):
            self._roll(model)
            self.cursor = 0

    @torch.no_grad()
    def _roll(self, model: LanguageModel) -> None:
        assert self.reference is not None, "prepare() comes before the first step"
        self.number += 1
        writer = self.reference if self.off_policy else model
        count = self.answers // self.method.group
        drawn = self.asking.training(writer, self.reference, self.method, self.number, count)
        words = self._words(model, drawn)
        if self.greedy:
            greedy = self.asking.counted(model, drawn.prompts, None)
            words["greedy_rewards"] = greedy.scores.to(words["mask"]).repeat_interleave(self.method.group)
        price = (words["old_logps"] - words["ref_logps"]).sum(1).mean()
        if hasattr(self.method, "observe"):
            self.method.observe(float(price))
        found = self.method.advantages(**{w: words[w] for w in self.asks["advantages"]})
        words["advantages"] = found.advantages
        if found.returns is not None:
            words["returns"] = found.returns
        self.rollout, self.words, self.moved = drawn.rollout, words, 0.0
        self.measures = measured(drawn.rollout, words, self.stop) | dict(found.metrics or {})
        for name in OF_POLICY if self.off_policy else ():  # answers of another model say nothing of this one
            del self.measures[name]
        self.measures["train/collapsed"] = self.collapse(drawn.rollout, self.measures["train/top_token"])
        if hasattr(self.method, "resample"):
            self.measures["train/resampled"] = torch.tensor(self.asking.redrawn)
        if hasattr(self.method, "least_entropy"):
            self.measures["train/left_out"] = torch.tensor(self.asking.left_out)

    def _words(self, model: LanguageModel, drawn: Drawn) -> dict[str, Any]:
        """The inputs of a method (alignment_inputs) that are known when the answers are written."""
        assert self.reference is not None
        rollout = drawn.rollout
        scores, mask = drawn.scores.to(rollout.mask), rollout.mask
        how = {"temperature": self.temperature, "entropy": False}
        reference, mode = policy_outputs(self.reference, rollout, **how), model.training
        model.eval()
        values = values_of(model, rollout, model.value_head) if self.critic else torch.zeros_like(mask)
        old = policy_outputs(model, rollout, **how).logps if self.off_policy else rollout.logps
        model.train(mode)
        said, passed = float(mask.sum()), tokens_read(model, rollout)
        passes, logits = 1 + self.critic + self.off_policy, 1 + self.off_policy
        self.asking.work += Work(read=passes * passed, read_said=logits * said)
        return {
            "rewards": scores, "mask": mask, "max_length": self.answer_tokens,
            "token_rewards": token_rewards(scores, drawn.steps, mask, drawn.texts, self.asking.decode),
            "old_logps": old, "ref_logps": reference.logps, "old_values": values,
        }  # fmt: skip

    def _head(self, model: LanguageModel) -> Any:
        return model.value_head if self.critic else None

    def loss(self, model: LanguageModel, example: Part) -> Loss:
        rows = self._rows(example.number)
        part = self._taken(rows)
        assert self.rollout is not None
        head, learns, answers = self._head(model), "entropy" in self.asks["loss"], self.rollout[rows]
        said = policy_outputs(model, answers, temperature=self.temperature, head=head, learns=learns)
        self.asking.work += Work(learnt=tokens_read(model, answers), learnt_said=float(answers.mask.sum()))
        step = self._taken(self._of_step())["mask"].sum()
        part |= {"logps": said.logps, "values": said.values, "entropy": said.entropy}
        part["tokens"] = step * len(rows) / self.per_step  # what is to be divided by, so that batches can be averaged
        loss, metrics = self.method.loss(**{w: part[w] for w in self.asks["loss"]})
        with torch.no_grad():
            old = kl_estimates(part["old_logps"], said.logps, part["mask"]).k3
            self.moved = float(old)
            entropy = masked_mean(said.entropy.detach(), part["mask"])
        found = self.measures | {"train/clip_fraction": torch.zeros(())} | metrics
        found |= {"train/old_kl": old, "train/entropy": entropy}
        return Loss(loss * len(rows), loss.new_tensor(float(len(rows))), found)

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        if self.best_of > 1:
            raise SkipStep  # not even decay: the policy is the model that it began with
        return {}

    def _of_step(self) -> Tensor:
        """The answers of this optimizer step: each pass has an order of its own, of groups if they stay together."""
        minibatches, unit = self.method.minibatches, self.method.group if self._whole else 1
        epoch, place = divmod(self.cursor, minibatches)
        generator = named_generator(self.setup.seeds.data, f"minibatches/{self.number}/{epoch}")
        order = torch.randperm(self.answers // unit, generator=generator)
        rows = (order[:, None] * unit + torch.arange(unit)).flatten()
        return rows[place * self.per_step : (place + 1) * self.per_step]

    def _rows(self, number: int) -> Tensor:
        size = int(self.setup.config["train"]["batch_size"])
        at = number % int(self.setup.config["train"]["accumulate"])
        return self._of_step()[at * size : (at + 1) * size]

    def _taken(self, rows: Tensor) -> dict[str, Any]:
        return {w: x[rows.to(x.device)] if isinstance(x, Tensor) and x.dim() else x for w, x in self.words.items()}

    def score(
        self,
        model: LanguageModel,
        batches: Sequence[dict[str, Any]],
        device: torch.device,
        between: Callable[[int], None],
    ) -> dict[str, float]:
        """Of answers to held-out prompts."""
        return self.held_out_answers.score(model, model if self.reference is None else self.reference, batches, between)

    def samples(self, model: LanguageModel) -> list[dict[str, str]]:
        return self.held_out_answers.samples(model)

    def state_dict(self) -> dict[str, Any]:
        """Everything between two optimizer steps: the rollout is in the middle of its passes."""
        held = self.rollout
        return {
            "number": self.number, "cursor": self.cursor, "moved": self.moved, "words": dict(self.words),
            "measures": dict(self.measures), "asking": self.asking.state_dict(), "collapsed": self.collapse.now,
            "rollout": None if held is None else {f.name: getattr(held, f.name) for f in fields(held)},
            "method": self.method.state_dict() if hasattr(self.method, "state_dict") else {},
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.number, self.cursor, self.moved = state["number"], state["cursor"], state["moved"]
        self.words, self.measures = dict(state["words"]), dict(state["measures"])
        if "asking" in state:  # older runs took a prompt for each group of each rollout
            self.asking.load_state_dict(state["asking"])
        else:
            self.asking.asked = (self.number + 1) * (self.answers // self.method.group)
        self.collapse.now = bool(state.get("collapsed", False))
        self.rollout = None if state["rollout"] is None else Rollout(**state["rollout"])
        if hasattr(self.method, "load_state_dict"):
            self.method.load_state_dict(state["method"])


class Numbers:
    """Batches are nothing but their numbers: what they hold is written when they are needed."""

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"number": torch.tensor(number)}


rule(
    when="task.name == 'policy' and facts.alignment.data != 'prompts'",
    why="task=policy answers prompts itself, and alignment={alignment.name} learns from {facts.alignment.data}",
    fix="alignment=grpo",
    where="alignment",
)
rule(
    when="task.name == 'policy' and 'next tokens' not in facts.architecture.accepts",
    why="task=policy reads an answer behind its prompt, and architecture={architecture.name} learns from "
    "{facts.architecture.accepts}",
    fix="architecture=causal",
    where="architecture",
)
rule(
    when="task.name == 'policy' and not facts.attention.caches",
    why="task=policy decodes with the KV cache, and attention={attention.name} has none",
    fix="attention=mha",
    where="attention",
)
