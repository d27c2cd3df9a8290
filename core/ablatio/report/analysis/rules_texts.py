"""Texts of `rules` in English and Chinese."""

from collections.abc import Mapping

from ablatio.report.analysis.verdict import Language

TEXTS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "comma": ", ",
        "figures": "{mean}, {test}, n = {n}",
        "p one-sided": "one-sided Holm {p}",
        "p either side": "Holm {p} for either direction",
        "p TOST": "two one-sided tests, Holm {p}",
        "p Holm": "Holm {p}",
        "p corrected": "corrected {p}",
        "untested": "no test",
        "margin without pairs": "The margin of {margin} was not tested: no arms are compared one by one.",
        "margin: superior": "Margin {margin}: {a} beats {b} by more than the margin ({figures})",
        "margin: equivalent": "Margin {margin}: {a} and {b} are equal within the margin ({figures})",
        "margin: not inferior": "Margin {margin}: {a} is not worse than {b} by the margin or more ({figures})",
        "margin: open": "Margin {margin}: for {a} and {b} neither a difference beyond the margin nor equality within "
        "it is shown ({mean}, n = {n})",
        "margin: no test": "Margin {margin}: no test of {a} and {b} (shared seeds: {n})",
        "margin: diverged": "Margin {margin}: no test of {a} and {b}, because runs diverged",
        "reached": "{arm} reaches the target of {target}: mean {mean} {unit}, one-sided limit {bound}, {p} (one-sided, "
        "times the number of arms), n = {n}",
        "from step": "; with all seeds stopped at one step, from step {step} on{cost}",
        "tokens": "{amount} tokens",
        "bytes": "about {amount} bytes of text",
        "seconds": "{amount} s",
        "none reaches": "No arm reaches the target of {target} at alpha {alpha}; the nearest is {nearest}",
        "others do not": "Not shown to reach it: {arms}",
        "and more": " and {k} more",
        "target: open": "{arm} (mean {mean}, {p}, n = {n})",
        "target: no test": "{arm} (mean {mean}, n = {n}, no test)",
        "target: diverged": "{arm} (mean {mean} without the {k} of {runs} runs that diverged, no test)",
        "at stops": "At their stopping steps, {a} at {first} and {b} at {second}: {figures}; the steps were chosen "
        "from these runs, so that p describes them and proves nothing",
        "disagree": "The scores disagree: by {metric} {winner} beats {loser}, by {other} {loser} beats {winner} "
        "({figures})",
        "no rule": "A rule of the study was not applied: {why}",
        "moderated": "p is that of the moderated t-test, in which the variances of all {m} pairs steady that of each; "
        "the intervals are those of the paired t-test.",
        "deviates": "This deviates from what was registered before the first run: {what}.",
        "instead": "{what} {now} instead of {before}",
        "metric": "score", "alpha": "alpha", "margin": "margin", "target": "target",
    },
    "zh": {
        "comma": "，",
        "figures": "{mean}，{test}，n = {n}",
        "p one-sided": "单侧 Holm {p}",
        "p either side": "两个方向的 Holm {p}",
        "p TOST": "双单侧检验，Holm {p}",
        "p Holm": "Holm {p}",
        "p corrected": "校正后 {p}",
        "untested": "无法检验",
        "margin without pairs": "界限 {margin} 未检验：没有逐一比较方案。",
        "margin: superior": "界限 {margin}：{a} 优于 {b}，且超出界限（{figures}）",
        "margin: equivalent": "界限 {margin}：{a} 与 {b} 在界限内相等（{figures}）",
        "margin: not inferior": "界限 {margin}：{a} 不比 {b} 差到界限的程度（{figures}）",
        "margin: open": "界限 {margin}：{a} 与 {b} 既未显示超出界限的差异，也未显示在界限内相等（{mean}，n = {n}）",
        "margin: no test": "界限 {margin}：{a} 与 {b} 无法检验（共同的种子：{n}）",
        "margin: diverged": "界限 {margin}：{a} 与 {b} 无法检验，因为有运行发散",
        "reached": "{arm} 达到目标 {target}：均值 {mean} {unit}，单侧置信限 {bound}，{p}（单侧，乘以方案数），n = {n}",
        "from step": "；所有种子在同一步停止时，自第 {step} 步起{cost}",
        "tokens": "{amount} 个词元",
        "bytes": "约 {amount} 字节文本",
        "seconds": "{amount} 秒",
        "none reaches": "没有方案在 alpha {alpha} 下达到目标 {target}；最接近的是 {nearest}",
        "others do not": "未显示达到目标：{arms}",
        "and more": "，另有 {k} 个",
        "target: open": "{arm}（均值 {mean}，{p}，n = {n}）",
        "target: no test": "{arm}（均值 {mean}，n = {n}，无法检验）",
        "target: diverged": "{arm}（均值 {mean}，未计入 {runs} 次运行中发散的 {k} 次，无法检验）",
        "at stops": "在各自的停止步，{a} 第 {first} 步，{b} 第 {second} 步：{figures}；"
        "步数由这些运行选定，故 p 仅作描述，不构成证明",
        "disagree": "两个指标不一致：按 {metric}，{winner} 优于 {loser}；"
        "按 {other}，{loser} 优于 {winner}（{figures}）",
        "no rule": "研究的一条规则未应用：{why}",
        "moderated": "p 来自调节 t 检验，其中全部 {m} 组的方差使每组的方差更稳定；区间来自配对 t 检验。",
        "deviates": "这与首次运行前登记的内容不同：{what}。",
        "instead": "{what}为 {now}，而非 {before}",
        "metric": "指标", "alpha": "alpha ", "margin": "界限", "target": "目标",
    },
}  # fmt: skip
