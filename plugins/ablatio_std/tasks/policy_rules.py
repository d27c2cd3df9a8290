"""What task=policy needs of the other parts of a run."""

from ablatio import rule

rule(
    when="task.name == 'policy' and facts.alignment.data != 'prompts'",
    why="task=policy samples answers to prompts, but alignment={alignment.name} trains on {facts.alignment.data}",
    fix="alignment=grpo",
    where="alignment",
)
rule(
    when="task.name == 'policy' and 'next tokens' not in facts.architecture.accepts",
    why="task=policy needs a model that continues a text, but architecture={architecture.name} trains on "
    "{facts.architecture.accepts}",
    fix="architecture=causal",
    where="architecture",
)
rule(
    when="task.name == 'policy' and not facts.attention.caches",
    why="task=policy decodes with the KV cache, which attention={attention.name} does not support",
    fix="attention=mha",
    where="attention",
)
