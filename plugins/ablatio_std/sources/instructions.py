"""Instructions that a model of ours writes and filters: self-instruct, and instructions that evolve."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from ablatio import Fraction, NonNegative, Positive, Range, sources

from ._instructions import Instruction, Novelty, OpenRun, Writer, WrittenInstructions, draw_of, refuse_few

# Words of tasks that a model of text cannot do (Self-Instruct's own list).
UNSUITABLE = (
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot",
    "go to", "video", "audio", "music", "flowchart", "diagram",
)  # fmt: skip
_UNSUITABLE = re.compile(r"\b(" + "|".join(UNSUITABLE) + r")\b", re.IGNORECASE)
_NUMBER = re.compile(r"\s*\d*\s*[.:)]?\s*")
FEWEST_WORDS, MOST_WORDS = 3, 150
FROM_SEEDS = 0.75  # share of the shown tasks that are seeds: 6 of 8

Run = Annotated[str, "folder of the run whose model writes"]
Path = Annotated[str, "seed tasks: records with instruction, input and output, in a file of any format"]
Novel = Annotated[float, Fraction, "largest ROUGE-L with an instruction that is there, below which one is kept"]
Temperature = Annotated[float, NonNegative, "of sampling"]
Tokens = Annotated[int, Positive, "tokens of an instruction, and of an answer"]
KeepSeeds = Annotated[bool, "the seed tasks are part of the data"]
Seed = Annotated[int, Range(0, 2**30), "seed of what is shown and sampled"]


@sources.register("self_instruct", paper="arXiv:2212.10560")
class SelfInstruct(WrittenInstructions):
    """Self-Instruct (Wang et al. 2022): the model writes instructions after examples of them, then their answers.

    Each prompt shows `shown` instructions, three quarters of them seeds and the others written ones, and the model
    continues the list.  Kept are instructions of 3 to 150 words that begin with a letter, ask for nothing but text, and
    have a ROUGE-L below `novelty` with all in the pool; and of them those with an answer that is not empty and does not
    repeat the instruction.  What was dropped is counted, and the instructions are kept in the cache.
    """

    name = "self_instruct"

    def __init__(
        self,
        open_run: OpenRun,
        *,
        run: Run = "",
        path: Path = "",
        size: Annotated[int, Positive, "instructions that are wanted"] = 100,
        tries: Annotated[int, Positive, "prompts at most per wanted instruction"] = 10,
        shown: Annotated[int, Positive, "instructions in a prompt; fewer if they do not fit the model's context"] = 8,
        novelty: Novel = 0.7,
        temperature: Temperature = 0.7,
        tokens: Tokens = 64,
        keep_seeds: KeepSeeds = True,
        seed: Seed = 0,
    ) -> None:
        self.size, self.tries, self.shown, self.novelty = size, tries, shown, novelty
        self.temperature, self.tokens, self.seed = temperature, tokens, seed
        knobs = {
            "size": size, "tries": tries, "shown": shown, "novelty": novelty, "temperature": temperature,
            "tokens": tokens, "seed": seed,
        }  # fmt: skip
        super().__init__(open_run, run, path, keep_seeds, knobs)

    def write(self, writer: Writer, seeds: Sequence[Instruction], dropped: Counter[str]) -> list[Instruction]:
        refuse_few(seeds, self.name)
        novel, made = Novelty(self.novelty), list[Instruction]()
        for task in seeds:
            novel.add(task.instruction)
        # 32 at once, as a batch of the writer; fewer if fewer are wanted.
        for number in range(0, self.size * self.tries, at_once := min(32, self.size)):
            prompts = [self._list_prompt(writer, seeds, made, number + i) for i in range(at_once)]
            texts = writer(prompts, self.tokens, self.temperature, draw_of(self.seed, "list", number))
            kept = list[str]()
            for text in texts:
                for instruction in _listed(text):
                    if reason := _unusable(instruction):
                        dropped[reason] += 1
                    elif not novel(instruction):
                        dropped["known"] += 1
                    else:
                        novel.add(instruction)
                        kept.append(instruction)
            # Within the round: new instructions are shown in the next prompts only with an answer that was accepted.
            made += self._answered(writer, seeds, kept, number, dropped)
            if len(made) >= self.size:
                break
        return made[: self.size]

    def _list_prompt(
        self, writer: Writer, seeds: Sequence[Instruction], made: Sequence[Instruction], number: int
    ) -> str:
        draw = random.Random(draw_of(self.seed, "shown", number))
        written = min(len(made), self.shown - round(self.shown * FROM_SEEDS))
        pool = draw.sample(list(made), written) + draw.sample(list(seeds), min(len(seeds), self.shown - written))
        draw.shuffle(pool)
        while True:
            tasks = "\n".join(f"Task {i}: {task.instruction}" for i, task in enumerate(pool, 1))
            prompt = f"Come up with a series of tasks:\n\n{tasks}\nTask {len(pool) + 1}:"
            if len(pool) < 2 or writer.size(prompt) <= writer.longest(self.tokens):
                return prompt
            # Shuffled before, so that the first is any.
            pool.pop(0)

    def _answered(
        self, writer: Writer, seeds: Sequence[Instruction], kept: Sequence[str], number: int, dropped: Counter[str]
    ) -> list[Instruction]:
        prompts = [answer_prompt(writer, seeds, text, self.tokens, draw_of(self.seed, text)) for text in kept]
        answers = writer(prompts, self.tokens, self.temperature, draw_of(self.seed, "answers", number)) if kept else []
        found = []
        for instruction, answer in zip(kept, map(first_answer, answers), strict=True):
            if not answer:
                dropped["no answer"] += 1
            elif answer.lower() == instruction.lower():
                dropped["answer repeats the instruction"] += 1
            else:
                found.append(Instruction(instruction, "", answer, f"round {number}"))
        return found


def answer_prompt(writer: Writer, seeds: Sequence[Instruction], instruction: str, tokens: int, seed: int) -> str:
    """A prompt for the answer to an instruction, after answered seed tasks as many as fit, at most three."""
    shown = random.Random(seed).sample(list(seeds), min(3, len(seeds)))
    while True:
        before = "".join(f"Task: {task.question}\nOutput: {task.output}\n\n" for task in shown)
        prompt = f"{before}Task: {instruction}\nOutput:"
        if not shown or writer.size(prompt) <= writer.longest(tokens):
            return prompt
        shown = shown[1:]


def first_answer(text: str) -> str:
    """The answer that a continuation begins with: up to the next task or blank line."""
    return re.split(r"\n\s*\n|\n?Task\b", text, maxsplit=1)[0].strip()


def _listed(text: str) -> list[str]:
    """The instructions of a continued list; the last one is left out if it may be cut off."""
    parts = [_NUMBER.sub("", part, count=1).strip() for part in re.split(r"\n+\s*(?:Task\b)?", text)]
    return [part for part in (parts[:-1] if len(parts) > 1 else parts) if part]


def _unusable(instruction: str) -> str:
    words = instruction.split()
    if len(words) < FEWEST_WORDS or len(words) > MOST_WORDS:
        return "too short or too long"
    if not instruction[0].isalpha():
        return "begins with no letter"
    return "not about text" if _UNSUITABLE.search(instruction) else ""


# The operations of Evol-Instruct: four that make a prompt harder, its input richer, and one that makes another prompt.
OPERATIONS = {
    "constraints": "Please add one more constraint or requirement to #The Given Prompt#.",
    "deepening": "If #The Given Prompt# contains inquiries about certain issues, increase their depth and breadth.",
    "concretizing": "Please replace general concepts in #The Given Prompt# with more specific concepts.",
    "reasoning": "If #The Given Prompt# can be solved with a few simple thoughts, request multiple-step reasoning.",
    "input": "Please add input data, such as a table or a piece of text, to #The Given Prompt#.",
    "breadth": "",
}
_IN_DEPTH = (
    "Rewrite a given prompt into a more complex version that must be reasonable and can be understood by humans.\n"
    "{operation}\n\n#The Given Prompt#:\n{instruction}\n\n#Rewritten Prompt#:\n"
)
_IN_BREADTH = (
    "Draw inspiration from #The Given Prompt# to create a brand new prompt of the same domain, but even more rare.\n\n"
    "#The Given Prompt#:\n{instruction}\n\n#Created Prompt#:\n"
)
_COPIED = re.compile(r"#|given prompt|rewritten prompt|created prompt", re.IGNORECASE)
_STOP_WORDS = set("a an and are as at be by for from in is it of on or that the this to was with".split())  # noqa: SIM905
SORRY_WORDS = 80  # an answer with "sorry" and fewer words is a refusal


@sources.register("evolved", paper="arXiv:2304.12244")
class Evolved(WrittenInstructions):
    """Evol-Instruct (Xu et al. 2023): the model rewrites instructions over several rounds, and answers the new ones.

    In each round each instruction is rewritten by an operation drawn at random: more constraints, deeper, more
    concrete, more steps of reasoning, with input data, or a new instruction of the same domain.  A rewriting is dropped
    if it is empty, copies words of the request, or has a ROUGE-L of at least `novelty` with one that is there; and if
    its answer is empty, a short apology, or punctuation and stop words alone.  Then the instruction goes on unchanged.
    """

    name = "evolved"

    def __init__(
        self,
        open_run: OpenRun,
        *,
        run: Run = "",
        path: Path = "",
        rounds: Annotated[int, Positive, "times that each instruction evolves"] = 4,
        novelty: Novel = 0.7,
        temperature: Temperature = 0.7,
        tokens: Tokens = 128,
        keep_seeds: KeepSeeds = True,
        seed: Seed = 0,
    ) -> None:
        self.rounds, self.novelty = rounds, novelty
        self.temperature, self.tokens, self.seed = temperature, tokens, seed
        knobs = {
            "rounds": rounds, "novelty": novelty, "temperature": temperature, "tokens": tokens, "seed": seed,
        }  # fmt: skip
        super().__init__(open_run, run, path, keep_seeds, knobs)

    def write(self, writer: Writer, seeds: Sequence[Instruction], dropped: Counter[str]) -> list[Instruction]:
        refuse_few(seeds, self.name)
        novel, current, made = Novelty(self.novelty), list(seeds), list[Instruction]()
        for task in seeds:
            novel.add(task.question)
        for number in range(self.rounds):
            names = [self._operation(number, i) for i in range(len(current))]
            prompts = [_request(name, task) for name, task in zip(names, current, strict=True)]
            texts = writer(prompts, self.tokens, self.temperature, draw_of(self.seed, "evolve", number))
            # Up to a blank line or a #, with which the writer repeats the form of the request.
            evolved = [re.split(r"\n\s*\n|#", text, maxsplit=1)[0].strip() for text in texts]
            asked = [answer_prompt(writer, seeds, text, self.tokens, draw_of(self.seed, text)) for text in evolved]
            answers = map(
                first_answer, writer(asked, self.tokens, self.temperature, draw_of(self.seed, "answer", number))
            )
            for i, (name, text, answer) in enumerate(zip(names, evolved, answers, strict=True)):
                reason = _failed(text, answer) or ("" if novel(text) else "no new information")
                if reason:
                    dropped[reason] += 1
                    continue
                novel.add(text)
                current[i] = Instruction(text, "", answer, f"round {number + 1}, {name}")
                made.append(current[i])
        return made

    def _operation(self, number: int, place: int) -> str:
        """In depth or in breadth with equal chances; one of the operations in depth at random."""
        draw = random.Random(draw_of(self.seed, "operation", number, place))
        names = list(OPERATIONS)
        return "breadth" if draw.random() < 0.5 else draw.choice(names[:-1])


def _request(operation: str, task: Instruction) -> str:
    if operation == "breadth":
        return _IN_BREADTH.format(instruction=task.question)
    return _IN_DEPTH.format(operation=OPERATIONS[operation], instruction=task.question)


def _failed(instruction: str, answer: str) -> str:
    if not instruction:
        return "empty"
    if _COPIED.search(instruction):
        return "copies the request"
    words = re.findall(r"\w+", answer.lower())
    if not set(words) - _STOP_WORDS:
        return "answer says nothing"
    return "apology" if "sorry" in words and len(words) < SORRY_WORDS else ""
