"""Sentences on runs and folders that are no verdict, in English and Chinese: what was left out, and why."""

from __future__ import annotations

from collections.abc import Mapping


class Note(str):
    """A sentence in both languages: the English text, with the Chinese one in `zh`."""

    zh: str


def note(key: str, /, **values: object) -> Note:
    """Fill in a sentence of TEXTS."""
    made = Note(TEXTS["en"][key].format(**values))
    made.zh = TEXTS["zh"][key].format(**values)
    return made


def in_short(text: str) -> str:
    """Return a note as it is, and of another text, such as an error, the first line."""
    return text if isinstance(text, Note) else text.split("\n")[0]


TEXTS: Mapping[str, Mapping[str, str]] = {
    "en": {
        "axes from jobs": "{error}; the axes come from the jobs",
        "same arm": "{label} means the same as {other}; one run stands for both",
        "replaced one": "{folder}: 1 run made before the source of a part changed counts no more; another took its "
        "place",
        "replaced": "{folder}: {n} runs made before the source of a part changed count no more; others took their "
        "place",
        "damaged lines": "{path}: damaged lines are left out: {lines}",
        "twice": "{arm} seed={seed} in {folder} is there twice; the first one counts",
        "mixed": "the runs differ in text, tokenizer or token budget: differences are taken within each folder, and "
        "means mix the folders",
        "versions": "the runs were made by {n} versions of ablatio's own code: a difference may come from the version",
        "collapsed": "{arm}: the policy of {n} of {runs} runs collapsed to one answer, first seen at step {step}",
        "collapsed one": "{arm}: the policy of the run collapsed to one answer, first seen at step {step}",
        "baseline": "baseline is {settings}",
        "many arms": "more than {n} arms without a baseline are compared with the best, by a pooled t",
        "effects: looks": "effects of settings are not estimated: a sequential study stops arms one by one, and p of "
        "effects does not allow for its looks",
        "effects: texts": "effects of settings are not estimated: the runs were scored on different texts",
        "effects: budgets": "the runs were trained on {least:,.0f} to {most:,.0f} tokens: an effect of {names} "
        "includes that of the budget",
        "effects: budgets of some": "the runs were trained on {least:,.0f} to {most:,.0f} tokens: an effect of some "
        "settings includes that of the budget",
        "matched": "{changed}, {what} {residual}",
        "matched as it is": "as it is, {what} {residual}",
        "other score": "{name}={text} was given for {meant}, and the report compares {metric}",
        "no result": "the ledger has it as done, and its folder holds no result",
        "process gone": "its process is gone; the same command goes on with it",
        "unknown state": "{path} names no state that is known: {state}",
        "unreadable rows": "{n} rows of metrics.csv cannot be read",
        "evaluations left out": "its later evaluations are left out: {error}",
        "changed file": "{path} is not the file that the ledger recorded when the run ended",
        "other setting": "{path} has another {key} than the job of this run: it belongs to another run",
        "other run": "{summary} is of run {a}, and {manifest} of run {b}",
        "other config": "{path} is not the config with which the run began, by its digest in {manifest}",
        "other size": "{manifest} counts {a} parameters and {summary} {b}",
        "other seed": "{manifest} has seed {a} for {name}, and {config} has {b}",
        "no direction": "{path}: `score` names {name} and {better}; expected a score, and lower or higher",
        "no number": "{path}: {what} is {value}; a finished run has a finite number",
        "two scores": "{path}: `score.value` is {a} and `{name}` is {b}",
        "other steps": "{path} has {steps} steps, and {config} asks for {asked}",
        "other curve": "{path} has {name} {a}, and {metrics} has {b} at step {steps}",
        "more reasons": "{told} and {n} more",
        "dropped": "{filter}, dropped",
        "changed": "{filter}, changed",
    },
    "zh": {
        "axes from jobs": "{error}；坐标轴取自各任务",
        "same arm": "{label} 与 {other} 含义相同，由一次运行代表两者",
        "replaced one": "{folder}：1 次运行早于某个部件源代码的改动，不再计入，已由新的运行代替",
        "replaced": "{folder}：{n} 次运行早于某个部件源代码的改动，不再计入，已由新的运行代替",
        "damaged lines": "{path}：已略去损坏的行：{lines}",
        "twice": "{folder} 中的 {arm} seed={seed} 出现了两次，以第一次为准",
        "mixed": "各次运行的文本、分词器或词元预算不同：差值在各文件夹内部计算，均值则混合了各文件夹",
        "versions": "各次运行出自 {n} 个版本的 ablatio 自身代码：差异可能来自版本",
        "collapsed": "{arm}：{runs} 次运行中有 {n} 次的策略塌缩为同一个回答，最早见于第 {step} 步",
        "collapsed one": "{arm}：该运行的策略塌缩为同一个回答，最早见于第 {step} 步",
        "baseline": "baseline 即 {settings}",
        "many arms": "没有基线而方案多于 {n} 个时，用合并方差的 t 检验与最优方案比较",
        "effects: looks": "未估计各设置的效应：序贯研究会逐个停止方案，效应的 p 值未计入各次检视",
        "effects: texts": "未估计各设置的效应：各次运行在不同的文本上评分",
        "effects: budgets": "各次运行训练了 {least:,.0f} 至 {most:,.0f} 个词元：{names} 的效应包含预算的效应",
        "effects: budgets of some": "各次运行训练了 {least:,.0f} 至 {most:,.0f} 个词元：某些设置的效应包含预算的效应",
        "matched": "{changed}，{what} {residual}",
        "matched as it is": "保持原样，{what} {residual}",
        "other score": "{name}={text} 是为 {meant} 给出的，而报告比较的是 {metric}",
        "no result": "账本记其已完成，而文件夹中没有结果",
        "process gone": "其进程已不在；再次执行同一命令即可继续",
        "unknown state": "{path} 中的状态未知：{state}",
        "unreadable rows": "metrics.csv 中有 {n} 行无法读取",
        "evaluations left out": "已略去其后来的评测：{error}",
        "changed file": "{path} 不是运行结束时账本所记录的文件",
        "other setting": "{path} 的 {key} 与该运行的任务不同：它属于另一次运行",
        "other run": "{summary} 属于运行 {a}，而 {manifest} 属于运行 {b}",
        "other config": "按 {manifest} 中的摘要，{path} 不是该运行开始时的配置",
        "other size": "{manifest} 计有 {a} 个参数，而 {summary} 为 {b} 个",
        "other seed": "{manifest} 中 {name} 的种子为 {a}，而 {config} 中为 {b}",
        "no direction": "{path}：`score` 写的是 {name} 和 {better}，应为一个得分以及 lower 或 higher",
        "no number": "{path}：{what} 为 {value}，而完成的运行应有有限的数值",
        "two scores": "{path}：`score.value` 为 {a}，而 `{name}` 为 {b}",
        "other steps": "{path} 有 {steps} 步，而 {config} 要求 {asked} 步",
        "other curve": "{path} 的 {name} 为 {a}，而 {metrics} 在第 {steps} 步为 {b}",
        "more reasons": "{told} 等，另有 {n} 种",
        "dropped": "{filter}，去掉",
        "changed": "{filter}，改动",
    },
}
