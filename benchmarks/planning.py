"""Time to plan a sweep of 1000 arms over 21 groups; exits with code 1 if it takes over 10 s.

python benchmarks/planning.py
"""

import sys
import time

LIMIT = 10.0  # seconds
AXES = (
    "norm=rmsnorm,layernorm,dyt", "placement=pre,post,sandwich", "activation=swiglu,gelu,relu2", "mlp=dense,moe",
    "position=rope,alibi,none", "attention=mha,gqa", "block=sequential,parallel", "architecture=causal",
    "init=gpt2,xavier", "objective=lm", "optimizer=adamw,lion,adafactor", "schedule=cosine,constant",
    "stabilizer=[clip],[ema]", "source=sotu", "tokenizer=bpe,bytes", "size=tiny,small", "preset=gpt2,opt",
    "norm.eps=1e-5,1e-6", "model.n_layers=2,4", "optimizer.lr=0.001,0.002,0.004", "model.tied=true,false",
)  # fmt: skip


def plan_1000() -> tuple[float, int, int]:
    """Plan a random sample of 1000 arms; return (seconds, arms that can run, arms that are refused)."""
    from ablatio.registry.discovery import load
    from ablatio.sweep.plan import plan_sweep

    load()  # not timed: scans the plugins once after each change of their files
    start = time.perf_counter()
    plan = plan_sweep([*AXES, "design=random", "design.runs=1000"])
    return time.perf_counter() - start, len(plan.cells), len(plan.study.refused)


if __name__ == "__main__":
    seconds, arms, refused = plan_1000()
    print(f"{arms + refused} arms of {len(AXES)} groups ({refused} refused) in {seconds:.2f} s; limit {LIMIT:g} s")
    sys.exit(seconds > LIMIT or arms + refused < 900)
