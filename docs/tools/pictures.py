"""Draws the pictures of the documentation as SVG: `python docs/tools/pictures.py`.

A life is a list of phases; a phase is a title and the calls in it, in their order.  A test runs a task and a stabilizer
and compares the calls that really happen with the lists here.
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "pictures"
WIDTH, ROW, HEAD, GAP, LEFT, CALL, NOTE = 800, 26, 30, 12, 24, 52, 360
INK, SOFT, LINE, PAPER, TINT, LOOP = "#1b1f24", "#57606a", "#d0d7de", "#ffffff", "#f3f6f9", "#0a6c74"


@dataclass(frozen=True)
class Call:
    """One method that is called: its signature, what it is for, whether a part may leave it out."""

    text: str
    note: str
    optional: bool = False

    @property
    def name(self) -> str:
        return self.text.split("(")[0]


@dataclass(frozen=True)
class Phase:
    """Calls that follow one another; `repeats`: what they are repeated for."""

    title: str
    calls: tuple[Call, ...]
    repeats: str = ""


TASK = (
    Phase(
        "Before the first step",
        (
            Call("Task(setup, *, knobs)", "reads the source, trains or loads the tokenizer"),
            Call("attach(model)", "adds a head or whatever trains beside the model", True),
            Call("load_state_dict(state)", "only in a run that is resumed", True),
            Call("prepare(model)", "first weights are there: what the reference says", True),
            Call("validation()", "the fixed held-out batches"),
            Call("score(model, batches, device, between)", "the scores before training"),
            Call("samples(model)", "answers for samples.jsonl", True),
        ),
    ),
    Phase(
        "Each optimizer step",
        (
            Call("training[k]", "batch k, a function of k alone"),
            Call("example(batch, generator)", "on the CPU; the generator is seeded with k"),
            Call("begin_step(model, step)", "before the first batch of a step: new rollouts", True),
            Call("loss(model, example)", "sum, weight, numbers to log; backward follows"),
            Call("before_step(step)", "gradients are ready; the optimizer moves next", True),
        ),
        "train.steps times; the first four accumulate times",
    ),
    Phase(
        "Every val_every and checkpoint_every steps, and at the end",
        (
            Call("validation(), score(...)", "as before the first step; samples(model) too"),
            Call("state_dict()", "what lasts beyond the weights, into the checkpoint", True),
            Call("tokens(steps), work(steps)", "what it took, for summary.json"),
        ),
    ),
)

STABILIZER = (
    Phase(
        "Before the first step",
        (
            Call("Stabilizer(*, knobs)", "made from its knobs; nothing is handed over"),
            Call("attach(model)", "hooks, switches", True),
            Call("load_state_dict(state)", "only in a run that is resumed", True),
        ),
    ),
    Phase(
        "Each optimizer step",
        (
            Call("batch_rows(seen, full)", "how many rows the batches of this step have", True),
            Call("before_step(step)", "after backward: change gradients, or raise SkipStep", True),
            Call("after_step(step)", "weights are new; left out when the step was skipped", True),
        ),
        "train.steps times",
    ),
    Phase(
        "Every val_every and checkpoint_every steps, and at the end",
        (
            Call("averaged(model)", "inside, the model holds the weights that are scored", True),
            Call("state_dict()", "into the checkpoint", True),
        ),
    ),
)

LAYERS = (
    ("cli", "commands, arguments, tables on the terminal"),
    ("api", "the same from Python: train, open_run, run_study, build_model"),
    ("testing", "contract suites, oracle records, generated reference"),
    ("report", "reads runs and studies; statistics; HTML, Markdown, CSV"),
    ("sweep", "arms, jobs, ledger, engine, recipes"),
    ("training", "one run: Lightning module, loop, checkpoints, run folder"),
    ("interop", "export to transformers, families, peft format"),
    ("config", "settings, composition with Hydra, checks and rules"),
    ("model", "builder, stack, attention kernels, cache, cost, decoding"),
    ("data", "splits, token cache, packing, order of batches"),
    ("registry", "kinds, parts, knobs, rules, plugins, catalogue"),
    ("storage", "atomic writes, checkpoints, safetensors, paths"),
    ("errors", "every failure that a user can meet, with its exit code"),
)


def text(x: float, y: float, said: str, **style: str) -> str:
    """One line of text."""
    attributes = " ".join(f'{key.replace("_", "-")}="{value}"' for key, value in style.items())
    return f'<text x="{x:g}" y="{y:g}" {attributes}>{escape(said)}</text>'


def life(title: str, phases: tuple[Phase, ...]) -> str:
    """Phases below one another; a bracket at the left of those that repeat; dashed boxes for optional calls."""
    made, y = [], 44.0
    for phase in phases:
        height = HEAD + ROW * len(phase.calls) + (18 if phase.repeats else 0) + 6
        made.append(f'<rect x="{LEFT}" y="{y:g}" width="{WIDTH - 2 * LEFT}" height="{height}" rx="8" fill="{TINT}"/>')
        made.append(text(LEFT + 14, y + 20, phase.title, font_weight="600", fill=INK))
        for i, call in enumerate(phase.calls):
            top = y + HEAD + ROW * i
            dash = ' stroke-dasharray="4 3"' if call.optional else ""
            made.append(
                f'<rect x="{CALL}" y="{top:g}" width="{NOTE - CALL - 14}" height="{ROW - 5}" rx="4" fill="{PAPER}" '
                f'stroke="{SOFT if call.optional else INK}"{dash}/>'
            )
            made.append(text(CALL + 9, top + 15, call.text, font_family="monospace", font_size="11.5", fill=INK))
            made.append(text(NOTE, top + 15, call.note, font_size="12.5", fill=SOFT))
        if phase.repeats:
            bottom = y + HEAD + ROW * len(phase.calls) - 5
            middle = LEFT + 14
            made.append(
                f'<path d="M{CALL - 4} {bottom - 8:g} H{middle} V{y + HEAD + 10:g} H{CALL - 5}" fill="none" '
                f'stroke="{LOOP}" stroke-width="1.6" marker-end="url(#arrow)"/>'
            )
            made.append(text(CALL, bottom + 16, f"repeated {phase.repeats}", font_size="12", fill=LOOP))
        y += height + GAP
    return page(title, y + 18, [*made, text(LEFT, y + 8, "dashed: optional", font_size="12", fill=SOFT)])


def layers() -> str:
    """The packages of the core, top down."""
    made, y = [], 44.0
    for name, what in LAYERS:
        made.append(
            f'<rect x="{LEFT}" y="{y:g}" width="{WIDTH - 2 * LEFT}" height="26" rx="5" fill="{TINT}" stroke="{LINE}"/>'
        )
        made.append(text(LEFT + 14, y + 17, name, font_family="monospace", font_weight="600", fill=INK))
        made.append(text(LEFT + 130, y + 17, what, font_size="12.5", fill=SOFT))
        y += 31
    note = "imports point down only; ablatio_std and plugins register parts and are imported by none of these"
    return page("Layers of core/ablatio", y + 18, [*made, text(LEFT, y + 10, note, font_size="12", fill=SOFT)])


def page(title: str, height: float, body: list[str]) -> str:
    """A whole SVG file."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
            f'font-family="system-ui, sans-serif" font-size="13.5">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{LOOP}"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{height:g}" rx="10" fill="{PAPER}"/>',
            text(LEFT, 29, title, font_size="16", font_weight="600", fill=INK),
            *body,
            "</svg>",
            "",
        ]
    )


def pictures() -> dict[str, str]:
    """File name -> SVG."""
    return {
        "task.svg": life("The life of a task", TASK),
        "stabilizer.svg": life("The life of a stabilizer", STABILIZER),
        "layers.svg": layers(),
    }


if __name__ == "__main__":
    for name, svg in pictures().items():
        (FOLDER / name).write_text(svg, encoding="utf-8")
