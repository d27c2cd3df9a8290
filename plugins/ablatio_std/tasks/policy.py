"""Reinforcement learning from rewards: the model answers prompts, a reward scores them, a policy method trains."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any

import torch
from torch import Tensor

from ablatio import OptionOf, Positive, alignments, rewards, sources
from ablatio.errors import UserError
from ablatio.model.cost.flops import Work
from ablatio.model.decoding.rollout import Rollout
from ablatio.model.example import Loss
from ablatio.model.language_model import LanguageModel
from ablatio.model.number_format import compute_dtype
from ablatio.model.optimizer_step import OptimizerStep, SkipStep
from ablatio.model.parameter_roles import named_generator
from ablatio.model.ranks import ranks
from ablatio.model.rl.answers import Answer, one_by_one, token_rewards
from ablatio.model.rl.kl import kl_estimates, masked_mean
from ablatio.model.rl.policy_outputs import ValueHead, policy_outputs, values_of
from ablatio.model.task import Task
from ablatio.model.transfer import to_device
from ablatio.registry.kinds import tasks
from ablatio.training.task_context import TaskContext

from ._policy_batches import BatchNumber, BatchNumbers, HeldRollout
from ._policy_evaluation import HeldOutEvaluation
from ._prompts import ChatPrompts, TextPrompts
from ._rollout_metrics import MEASURES, OF_POLICY, CollapseDetector, rollout_metrics
from ._rollouts import Reward, RolloutSampler, ScoredRollout, processors_of, reward_of


@tasks.register("policy", paper="arXiv:2203.02155")
class Policy(Task):
    """A rollout samples answers to new prompts and scores them; `epochs` passes of `minibatches` steps train on it.

    `alignment` is the policy method (data = prompts), `reward` scores the answers.  A batch has `train.batch_size`
    answers, a rollout as many as its minibatches need.  The reference is the model before its first step; a critic, if
    the method needs one, is a value head trained with the policy.  Prompts are the questions of a source of
    conversations, or passages cut out of its documents.  `decode` truncates or penalizes the distribution that answers
    are drawn from in training.  `gold` also scores held-out answers and is never trained on:
    if it falls while the reward rises, the reward is being over-optimized (arXiv:2210.10760).

    Several devices sample, score and train on the rows of their own, and exchange the tokens and numbers of all: a
    method sees the whole rollout and the whole batch.
    """

    accepts, main, better = "documents", "reward", "higher"
    scores = ("reward", "gold", "kl", "entropy", "answer_length")
    needs, copies = ("alignment=ppo", "reward=length"), 1
    batch_changes = False
    reads = ("decode",)
    metrics = (*MEASURES, "train/old_kl", "train/entropy", "train/clip_fraction")

    def __init__(
        self,
        setup: TaskContext,
        *,
        prompt_tokens: Annotated[int, Positive, "tokens of a prompt that is cut out of a text"] = 16,
        answer_tokens: Annotated[int, Positive, "largest number of tokens of an answer"] = 32,
        temperature: Annotated[float, Positive, "sampling temperature of answers and of their log-probabilities"] = 1.0,
        held_out: Annotated[int, Positive, "number of held-out prompts per validation"] = 42,
        gold: Annotated[str | None, OptionOf("reward"), "rule that also scores held-out answers; null: reward"] = None,
    ) -> None:
        self.setup, self.prompt_tokens, self.answer_tokens = setup, prompt_tokens, answer_tokens
        self.temperature, self.held_out = temperature, held_out
        self.name = self._chosen("alignment", "ppo")
        entry = alignments[self.name]
        if entry.facts["data"] != "prompts":
            raise UserError(
                f"alignment={self.name} trains on {entry.facts['data']}, but task=policy provides prompts\n"
                "    try: alignment=grpo"
            )
        self.method: Any = setup.part("alignment")
        self.asks: dict[str, list[str]] = entry.facts["asks"]
        asked = {word for words in self.asks.values() for word in words}
        self.critic, self.greedy = bool(asked & {"values", "old_values"}), "greedy_rewards" in asked
        self.from_text = entry.facts["prompts"] == "text"
        self._find_prompts()
        self.asking = RolloutSampler(
            setup, self.prompts, self.tokenizer, *self._judge(), self.asks["advantages"], self.stop, answer_tokens,
            temperature, processors_of(setup), self._compares,
        )  # fmt: skip
        self.collapse = CollapseDetector(
            self.stop, self.asking.decode, float(setup.config["optimizer"].get("lr", 1e-3))
        )
        self.off_policy = getattr(self.method, "writer", "policy") == "reference"
        self.best_of = getattr(self.method, "best_of", None) or 1
        self.held_out_answers = HeldOutEvaluation(self.asking, self.best_of, gold)
        train = setup.config["train"]
        self.per_step = int(train["batch_size"]) * int(train["accumulate"])
        self.answers = self.per_step * self.method.minibatches
        self._fits()
        self.reference: LanguageModel | None = None
        self.head: ValueHead | None = None
        self.rollout: Rollout | None = None
        self._held_rollout: HeldRollout | None = None
        self.words: dict[str, Any] = {}
        self.measures: dict[str, Tensor] = {}
        # Number of the rollout, the step within its passes, and the KL from the policy that sampled it: for each batch
        # of the step its share, so that a batch that is computed twice counts once.
        self.number, self.cursor, self.shares = -1, 0, dict[int, Tensor | float]()

    @classmethod
    def uses_template(cls, config: Mapping[str, Any]) -> bool:
        """Questions of conversations are written in it; prompts that are cut out of a text are not."""
        from_text = alignments[config["alignment"]["name"]].facts["prompts"] == "text"
        return "conversations" in sources[config["source"]["name"]].facts["uses"] and not from_text

    def _find_prompts(self) -> None:
        """Use the questions of a source of conversations as prompts, else passages of its documents."""
        setup, source = self.setup, self.setup.source()
        self.prompts: ChatPrompts | TextPrompts
        if self.uses_template(setup.config):
            self.prompts = chat = ChatPrompts(setup, source, setup.config["model"]["max_len"] - self.answer_tokens)
            self.tokenizer, self.stop, self.content = chat.tokenizer, chat.stop, chat.content
            return
        corpus, self.tokenizer = setup.corpus(source)
        self.stop = self.tokenizer.eos
        self.content = {"fingerprint": corpus.fingerprint, "key": corpus.key, **corpus.counts}
        where = self.prompt_tokens, self.answer_tokens, corpus.eos, setup.seeds.data
        self.prompts = TextPrompts(corpus, *where)

    def _chosen(self, kind: str, usual: str) -> str:
        node = self.setup.config.get(kind)
        if not node:
            raise UserError(f"task=policy needs a {kind}, but the config has none\n    try: {kind}={usual}")
        return str(node["name"])

    def _judge(self) -> tuple[Reward, str]:
        if self.from_text:  # the following text is the correct answer
            return one_by_one(self._right, self.name), self.name
        name = self._chosen("reward", "length")
        return reward_of(self.setup, name, self.tokenizer), name

    @property
    def _compares(self) -> bool:
        """True if the reward compares the answers to a prompt."""
        return not self.from_text and bool(rewards[self._chosen("reward", "length")].facts["compares"])

    def _right(self, answer: Answer) -> float:
        ids = answer.more["following"]
        ends = [len(self.tokenizer.decode(ids[: n + 1])) for n in range(len(ids))]
        return float(self.method.correct(answer.text, answer.truth, ends))

    def _fits(self) -> None:
        group, rows = self.method.group, self.per_step if self._whole_groups else self.answers
        if rows % group:
            raise UserError(
                f"{rows} answers (train.batch_size x train.accumulate{'' if self._whole_groups else ' x minibatches'}) "
                f"cannot be divided into groups of alignment.group={group}\n    try: train.batch_size={group}"
            )
        longest, room = self.prompt_tokens + self.answer_tokens, int(self.setup.config["model"]["max_len"])
        if longest > room:
            raise UserError(
                f"a prompt of {self.prompt_tokens} tokens and an answer of {self.answer_tokens} have {longest} tokens, "
                f"more than model.max_len={room}\n    try: task.answer_tokens={max(1, room - self.prompt_tokens)}"
            )

    @property
    def _whole_groups(self) -> bool:
        return bool(alignments[self.name].facts["whole_groups"])

    def attach(self, model: LanguageModel) -> None:
        """Add the critic's value head if the method needs one."""
        if self.critic:
            model.value_head = ValueHead(model.model.d_model)

    def prepare(self, model: LanguageModel) -> None:
        """Copy the model in its present state as the reference."""
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)

    @property
    def training(self) -> "BatchNumbers":
        return BatchNumbers()

    def validation(self, length: int | None = None, tokens: int | None = None) -> list[dict[str, Any]]:
        """Batches of held-out prompts; each samples its answers from its own random streams."""
        limit, each = tokens or self.setup.config["data"]["val_tokens"], self.prompt_tokens + self.answer_tokens
        count = self.held_out if limit is None else max(1, limit // each)
        count = count if tokens else min(count, self.held_out)
        return [{"number": torch.tensor(i), "first": i, "count": min(16, count - i)} for i in range(0, count, 16)]

    def tokens(self, steps: int) -> int:
        """Upper bound on the tokens of prompts and answers; their true number is known only after sampling."""
        return steps * self.per_step * (self.prompt_tokens + self.answer_tokens)

    @property
    def row_length(self) -> int:
        """Largest number of tokens of a prompt with its answer."""
        asked = self.prompt_tokens if isinstance(self.prompts, TextPrompts) else self.prompts.longest
        return asked + self.answer_tokens

    def work(self, steps: int) -> Work:
        """Work so far: sampling rollouts, reference and critic on them, and the training passes."""
        return self.asking.work

    def example(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> BatchNumber:
        return BatchNumber(int(batch["number"]))

    def begin_step(self, model: LanguageModel, step: int) -> None:
        """Sample a new rollout when the last one is used up or the policy has moved too far from it."""
        if self.best_of > 1 and self.rollout is not None:
            return  # best-of-n sampling does not train
        self.cursor += 1
        used = self.cursor >= self.method.epochs * self.method.minibatches
        if self.rollout is None or used or self._moved_too_far():
            with self.setup.whole_weights():
                self._sample_rollout(model)
            self.cursor = 0
        self.shares = {}

    @property
    def moved(self) -> float:
        """KL of the last step from the policy that sampled the rollout, in nats per token."""
        return sum(map(float, self.shares.values()))  # asked for by some methods and by checkpoints: the device waits

    def _moved_too_far(self) -> bool:
        # Together: on another machine the last digit of the sum may differ.
        return hasattr(self.method, "stops") and ranks().agree(bool(self.method.stops(self.moved)))

    @torch.no_grad()
    def _sample_rollout(self, model: LanguageModel) -> None:
        assert self.reference is not None, "prepare() comes before the first step"
        self.number += 1
        writer = self.reference if self.off_policy else model
        count = self.answers // self.method.group
        drawn = self.asking.training(writer, self.reference, self.method, self.number, count)
        words = self._sampled_inputs(model, drawn)
        if self.greedy:
            greedy = self.asking.sample_and_count(model, drawn.prompts, None)
            words["greedy_rewards"] = greedy.scores.to(words["mask"]).repeat_interleave(self.method.group)
        kl = (words["old_logps"] - words["ref_logps"]).sum(1).mean()  # nats per answer
        if hasattr(self.method, "observe"):
            self.method.observe(float(kl))
        found = self.method.advantages(**{w: words[w] for w in self.asks["advantages"]})
        words["advantages"] = found.advantages
        if found.returns is not None:
            words["returns"] = found.returns
        self.rollout, self.words = drawn.rollout, words
        self.measures = rollout_metrics(drawn.rollout, words, self.stop) | dict(found.metrics or {})
        for name in OF_POLICY if self.off_policy else ():  # answers of the reference do not measure the policy
            del self.measures[name]
        self.measures["train/collapsed"] = self.collapse(drawn.rollout, self.measures["train/top_token"])
        if hasattr(self.method, "resample"):
            self.measures["train/resampled"] = torch.tensor(self.asking.redrawn)
        if hasattr(self.method, "least_entropy"):
            self.measures["train/left_out"] = torch.tensor(self.asking.left_out)

    def _sampled_inputs(self, model: LanguageModel, drawn: ScoredRollout) -> dict[str, Any]:
        """The method's inputs (registry.kinds.alignment_inputs) that are known once the answers are sampled."""
        assert self.reference is not None
        rollout = drawn.rollout
        scores, mask = drawn.scores.to(rollout.mask), rollout.mask
        how, mode = {"temperature": self.temperature, "entropy": False}, model.training
        model.eval()
        held = HeldRollout.of(rollout)
        ref_logps = held.of_all(lambda own, plan: policy_outputs(self.reference, own, plan=plan, **how).logps)
        values = torch.zeros_like(mask)
        if self.critic:
            values = held.of_all(lambda own, plan: values_of(model, own, model.value_head, plan))
        sixteen = compute_dtype(mask.device, torch.float32) != torch.float32
        old = self._read_logps(model, held) if self.off_policy or sixteen else rollout.logps
        model.train(mode)
        answer_tokens, read = held.answer_tokens, held.plan.tokens_read(model)
        again = self.off_policy or sixteen
        passes, logits = 1 + self.critic + again, 1 + again
        self.asking.work += Work(read=passes * read, read_said=logits * answer_tokens)
        return {
            "rewards": scores, "mask": mask, "max_length": self.answer_tokens,
            "token_rewards": token_rewards(scores, drawn.steps, mask, drawn.texts, self.asking.decode),
            "old_logps": old, "ref_logps": ref_logps, "old_values": values,
        }  # fmt: skip

    def _read_logps(self, model: LanguageModel, held: HeldRollout) -> Tensor:
        """Log-probabilities of a rollout's tokens under the model before its first update: (N, T).

        They are computed in the batches of the first pass.  In 16 bits the rounding of a row depends on the shapes of
        the products, so those of decoding, or of other batches, would give a ratio to the policy that is not 1.
        """
        found, how = torch.zeros_like(held.rollout.mask), {"temperature": self.temperature, "entropy": False}
        for rows in self._order(0).split(int(self.setup.config["train"]["batch_size"])):
            logps = held[rows].of_all(lambda own, plan: policy_outputs(model, own, plan=plan, **how).logps)
            found[to_device(rows, found.device)] = logps
        return found

    @property
    def _held(self) -> HeldRollout:
        """The rollout, with its copy on the CPU."""
        assert self.rollout is not None
        if self._held_rollout is None or self._held_rollout.rollout is not self.rollout:
            self._held_rollout = HeldRollout.of(self.rollout)
        return self._held_rollout

    def _head(self, model: LanguageModel) -> Any:
        return model.value_head if self.critic else None

    def loss(self, model: LanguageModel, example: BatchNumber) -> Loss:
        rows = self._rows(example.number)
        part = self._select(rows)
        head, learns, answers = self._head(model), "entropy" in self.asks["loss"], self._held[rows]
        own, how = answers.own, {"temperature": self.temperature, "head": head, "learns": learns}
        plan = own.plan
        outputs = policy_outputs(model, own.rollout, plan=plan, **how)
        read = (plan if own is answers else answers.plan).tokens_read(model)
        self.asking.work += Work(learnt=read, learnt_said=answers.answer_tokens)
        step = self.words["mask"][to_device(self._step_rows(), part["mask"].device)].sum()
        # A method may compare the answers of a batch: all ranks compute the loss of all rows, each with its gradient.
        part |= {"logps": ranks().gather_rows(outputs.logps), "entropy": ranks().gather_rows(outputs.entropy)}
        if "values" in self.asks["loss"]:
            part["values"] = ranks().gather_rows(outputs.values)
        # The batch's share of the step's tokens: the mean over the batches is then the mean over all tokens.
        part["tokens"] = step * len(rows) / self.per_step
        loss, metrics = self.method.loss(**{w: part[w] for w in self.asks["loss"]})
        with torch.no_grad():
            moved = kl_estimates(part["old_logps"], part["logps"], part["mask"])
            share = part["mask"].sum() / step  # 1 without accumulation
            self.shares[example.number] = getattr(moved, getattr(self.method, "stop_by", "k3")) * share
            entropy = masked_mean(part["entropy"].detach(), part["mask"])
        found = self.measures | {"train/clip_fraction": torch.zeros(())} | metrics
        found |= {"train/old_kl": moved.k3, "train/entropy": entropy}
        share = len(rows) / ranks().replicas
        return Loss(loss * share, loss.new_full((), share), found)

    def before_step(self, step: OptimizerStep) -> dict[str, Tensor]:
        if self.best_of > 1:
            raise SkipStep  # not even weight decay: the policy stays the initial model
        if getattr(self.method, "stop_drops", False) and self._moved_too_far():
            raise SkipStep
        return {}

    def _step_rows(self) -> Tensor:
        """Rows of the rollout in this optimizer step."""
        epoch, place = divmod(self.cursor, self.method.minibatches)
        return self._order(epoch)[place * self.per_step : (place + 1) * self.per_step]

    def _order(self, epoch: int) -> Tensor:
        """Rows of the rollout in the order of a pass; each pass shuffles them, by groups if the method needs it."""
        unit = self.method.group if self._whole_groups else 1
        generator = named_generator(self.setup.seeds.data, f"minibatches/{self.number}/{epoch}")
        order = torch.randperm(self.answers // unit, generator=generator)
        return (order[:, None] * unit + torch.arange(unit)).flatten()

    def _rows(self, number: int) -> Tensor:
        size = int(self.setup.config["train"]["batch_size"])
        at = number % int(self.setup.config["train"]["accumulate"])
        return self._step_rows()[at * size : (at + 1) * size]

    def _select(self, rows: Tensor) -> dict[str, Any]:
        words = self.words.items()
        return {w: x[to_device(rows, x.device)] if isinstance(x, Tensor) and x.dim() else x for w, x in words}

    def score(
        self,
        model: LanguageModel,
        batches: Sequence[dict[str, Any]],
        device: torch.device,
        between: Callable[[int], None],
    ) -> dict[str, float]:
        """Scores of the answers to held-out prompts."""
        return self.held_out_answers.score(model, model if self.reference is None else self.reference, batches, between)

    def samples(self, model: LanguageModel) -> list[dict[str, str]]:
        return self.held_out_answers.samples(model)

    def state_dict(self) -> dict[str, Any]:
        """All state between two optimizer steps, with the rollout, which may be in the middle of its passes."""
        held = self.rollout
        return {
            "number": self.number, "cursor": self.cursor, "moved": self.moved, "words": dict(self.words),
            "measures": dict(self.measures), "asking": self.asking.state_dict(), "collapsed": self.collapse.now,
            "rollout": None if held is None else {f.name: getattr(held, f.name) for f in fields(held)},
            "method": self.method.state_dict() if hasattr(self.method, "state_dict") else {},
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.number, self.cursor, self.shares = state["number"], state["cursor"], {0: state["moved"]}
        self.words, self.measures = dict(state["words"]), dict(state["measures"])
        if "asking" in state:  # checkpoints without it come from versions that used one prompt per group and rollout
            self.asking.load_state_dict(state["asking"])
        else:
            self.asking.asked = (self.number + 1) * (self.answers // self.method.group)
        self.collapse.now = bool(state.get("collapsed", False))
        self.rollout = None if state["rollout"] is None else Rollout(**state["rollout"])
        if hasattr(self.method, "load_state_dict"):
            self.method.load_state_dict(state["method"])
