"""Words of the report's sections, tables and captions in English and Chinese; verdicts have texts of their own.

What the page says as well stands in its files of words, and is read from there.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Literal

from ablatio.report.read.notes import Note

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")


def say(key: str, language: Language = "en", /, **values: object) -> str:
    """A text of this module, else of the page, with its fields filled in.  Raises KeyError for an unknown key."""
    text = TEXTS[language][key] if key in TEXTS[language] else page_words(language)[key]
    return text.format(**values)


def heads(table: str, language: Language = "en") -> tuple[str, ...]:
    """Heads of the columns of a table: `evaluations`, `sources`, `tokenizers`, `filters`, `dropped`, `signal` ..."""
    return tuple(say(f"{table}_heads", language).split("|"))


def own(text: str, language: Language) -> str:
    """A text in this language if it is a note, which has both; other texts, such as an error, as they are."""
    return text.zh if language == "zh" and isinstance(text, Note) else text


@functools.cache
def page_words(language: Language) -> Mapping[str, str]:
    """Words of the page."""
    path = files("ablatio.report.html") / "assets" / f"words.{language}.json"
    found: Mapping[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found


TEXTS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "item": "{name}: {text}",
        "and more": "{names} and {k} more",
        "of one comparison": "of one comparison alone; that for all comparisons together contains 0",
        "against base": "the baseline",
        "against each": "every other arm",
        "caption": "Differences are paired by seed, against {against}, with 95 % intervals{star}; {p}; {metric}, "
        "{direction}.",
        "caption star": " (*: {star})",
        "caption best": "Differences are paired by seed, to the best of the other arms (Hsu 1984), with intervals that "
        "hold together; p after closed testing; {metric}, {direction}.",
        "arms_heads": "sd|difference to the baseline|p|parameters|FLOPs/token|tokens|learning rate|diverged|memory|"
        "step|time",
        "short difference": "difference",
        "rate tuned": "{rate} tuned",
        "rate untuned": "{rate} untuned",
        "states": "{done} of {n} done, {others}",
        "state done": "done",
        "state failed": "failed",
        "state diverged": "diverged",
        "state damaged": "damaged",
        "state preempted": "preempted",
        "state planned": "planned",
        "state running": "running",
        "state paused": "paused",
        "amount of state": "{n} {state}",
        "budget parameters": "parameters",
        "budget trainable": "trainable",
        "budget tokens": "tokens",
        "budget bytes": "bytes",
        "budget epochs": "epochs",
        "budget flops": "flops",
        "budget steps": "steps",
        "budget seconds": "seconds",
        "budget flops_per_token": "flops per token",
        "stage_heads": "stage|arm|task|starts from|score|before|after|better|done",
        "direction lower": "lower",
        "direction higher": "higher",
        "title effects": "Effects",
        "effect_heads": "effect|contrast|difference|interval|p|aliases",
        "from to": "{low} to {high}",
        "minus": ", {given} minus {without}",
        "partly": "partly {names}",
        "effects residual": "the spread between runs of equal arms ({df:g} degrees of freedom)",
        "effects lenth": "Lenth's pseudo standard error, for lack of replicates",
        "effects caption": "Differences in {metric}; 95 % intervals and p hold for all {count} together, from {scale}.",
        "effects untested": "Differences in {metric}; equal arms do not differ at all, so there is no test.",
        "more effects": "... and {k} effects more in effects.csv",
        "title search": "Search",
        "best trials": "Best trials of {n}",
        "title design": "Design",
        "title refused": "Refused",
        "title lost": "Failed and diverged",
        "title made of": "Made of",
        "title shrunk": "Shrunk means",
        "title again": "Again",
        "title samples": "Answers before and after",
        "runs planned": "{n} runs planned{trials}: {counts}{refused}",
        "no run planned": "no run planned{refused}",
        "trials among": ", {n} of them trials",
        "refused before": "; {n} refused before the start",
        "computing": "{x} of computing",
        "tokens spent": "{x} tokens",
        "flop spent": "{x}FLOP",
        "most memory": "{x}B of memory at most",
        "spent": "{spent}, failed runs included",
        "noise of": "{name} over {n} seeds: {metric} {mean}, sd {sd} [{low}, {high}]",
        "size with seeds": "{size} with {n} seeds",
        "visible": "a true difference is found in 4 of 5 studies from {sizes} on",
        "shrunk": "{name}: {mean}, sd {sd}, best with probability {best}",
        "not told apart": "not told apart: {alias}",
        "with runs": "{value} ({runs})",
        "note line": "Note: {text}",
        "signal text": "Signal: largest difference between two arms. sd of seeds: of a run, without the shift that all "
        "arms share in a seed; sd of last {last}: of the last {last} validations around their trend. Monotone: rank "
        "correlation with the steps, 1 is always improving. Ranks stable: Kendall's tau of the order of the arms with "
        "that at the end, over the second half. Order at half: share of pairs ordered at half of the training as at "
        "its end. Compare arms by a score with a high signal / seeds (arXiv:2508.13144).",
        "more sentences": "... and {k} sentences more in report.md",
        "more arms": "... and {k} arms more in the files",
        "starred": "* interval {star}",
        "several runs": "{n} runs, such as {first}",
        "nothing done": "No run is done yet: there is nothing to compare.",
        "refused line": "refused: {label}: {why}",
        "own note": "note: {text}",
        "waiting": "waiting for runs in {names}  (Ctrl-C ends this)",
        "runs done": "{done} of {n} runs done",
        "not up to date": "not up to date: {trouble}",
        "going on now": "{now}: {counts}  (Ctrl-C ends this, not the runs)",
        "ended": "ended: {counts}",
        "stopped": "stopped before the end: {counts}",
        "try": "try: {command}",
        "files written": "written: {files}",
    },
    "zh": {
        "item": "{name}：{text}",
        "and more": "{names} 等，另有 {k} 个",
        "of one comparison": "仅就一组比较而言；对全部比较同时成立的区间包含 0",
        "against base": "与基线",
        "against each": "与其他每个方案",
        "caption": "差值按种子配对，{against}相减，附 95 % 区间{star}；{p}；{metric}，{direction}。",
        "caption star": "（*：{star}）",
        "caption best": "差值按种子配对，与其他方案中最优的相减（Hsu 1984），各区间同时成立；p 值经封闭检验；"
        "{metric}，{direction}。",
        "arms_heads": "标准差|与基线之差|p|参数量|FLOPs/词元|词元数|学习率|发散|内存|每步|时间",
        "short difference": "差值",
        "rate tuned": "{rate}（已调优）",
        "rate untuned": "{rate}（未调优）",
        "states": "{n} 次中完成 {done} 次，{others}",
        "state done": "完成",
        "state failed": "失败",
        "state diverged": "发散",
        "state damaged": "损坏",
        "state preempted": "中断",
        "state planned": "未开始",
        "state running": "运行中",
        "state paused": "暂停",
        "amount of state": "{state} {n} 次",
        "budget parameters": "参数",
        "budget trainable": "可训练参数",
        "budget tokens": "词元",
        "budget bytes": "文本字节",
        "budget epochs": "轮数",
        "budget flops": "训练 FLOPs",
        "budget steps": "步数",
        "budget seconds": "用时",
        "budget flops_per_token": "每词元 FLOPs",
        "stage_heads": "阶段|方案|任务|取自|得分|之前|之后|更好|完成",
        "direction lower": "更低",
        "direction higher": "更高",
        "title effects": "效应",
        "effect_heads": "效应|对比|差值|区间|p|混杂",
        "from to": "{low} 到 {high}",
        "minus": "，{given} 减 {without}",
        "partly": "部分混杂 {names}",
        "effects residual": "相同方案各次运行之间的离散程度（自由度 {df:g}）",
        "effects lenth": "Lenth 伪标准误（没有重复运行）",
        "effects caption": "{metric} 的差值；95 % 区间与 p 值对全部 {count} 个差值同时成立，依据为{scale}。",
        "effects untested": "{metric} 的差值；相同方案之间毫无差异，因此没有检验。",
        "more effects": "……另有 {k} 个效应见 effects.csv",
        "title search": "搜索",
        "best trials": "{n} 次试验中最好的",
        "title design": "设计",
        "title refused": "被拒绝的方案",
        "title lost": "失败与发散",
        "title made of": "来源",
        "title shrunk": "收缩均值",
        "title again": "重新运行",
        "title samples": "训练前后的回答",
        "runs planned": "计划运行 {n} 次{trials}：{counts}{refused}",
        "no run planned": "没有计划任何运行{refused}",
        "trials among": "，其中试验 {n} 次",
        "refused before": "；开始前被拒绝的方案 {n} 个",
        "computing": "计算 {x}",
        "tokens spent": "词元 {x}",
        "flop spent": "{x}FLOP",
        "most memory": "内存最多 {x}B",
        "spent": "{spent}，包括失败的运行",
        "noise of": "{name}，{n} 个种子：{metric} {mean}，标准差 {sd} [{low}, {high}]",
        "size with seeds": "{n} 个种子时 {size}",
        "visible": "真实差值自以下大小起，5 次研究中有 4 次能够发现：{sizes}",
        "shrunk": "{name}：{mean}，标准差 {sd}，为最优的概率 {best}",
        "not told apart": "无法区分：{alias}",
        "with runs": "{value}（{runs}）",
        "note line": "说明：{text}",
        "signal text": "信号：两个方案间的最大差值。种子间标准差：单次运行的标准差，不含同一种子下各方案共有的偏移；"
        "末 {last} 次标准差：末 {last} 次验证围绕其趋势的标准差。单调性：与步数的秩相关，1 为始终在改善。"
        "排序稳定：后半程各方案的次序与终点次序的 Kendall tau。半程次序：半程与终点次序相同的方案对所占比例。"
        "请用信号/种子高的指标比较方案（arXiv:2508.13144）。",
        "more sentences": "……另有 {k} 句见 report.md",
        "more arms": "……另有 {k} 个方案见各文件",
        "starred": "* 区间{star}",
        "several runs": "{n} 次运行，例如 {first}",
        "nothing done": "还没有完成的运行：没有可比较的对象。",
        "refused line": "被拒绝：{label}：{why}",
        "own note": "说明：{text}",
        "waiting": "等待 {names} 中的运行（Ctrl-C 结束等待）",
        "runs done": "{n} 次运行中完成 {done} 次",
        "not up to date": "不是最新状态：{trouble}",
        "going on now": "{now}：{counts}（Ctrl-C 只结束此显示，不结束运行）",
        "ended": "已结束：{counts}",
        "stopped": "未到终点即停止：{counts}",
        "try": "请执行：{command}",
        "files written": "已写入：{files}",
    },
}
