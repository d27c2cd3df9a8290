"""Words of scaling laws and of the verdict across scales, in English and Chinese."""

from collections.abc import Mapping

Words = Mapping[str, str]

WORDS: Mapping[str, Words] = {
    "en": {
        "N": "parameters", "D": "tokens", "colon": ": ", "mark": "; ", "stop": ".",
        "gain": "gain", "disadvantage": "disadvantage",
        "grows": "The {gain} of {arm} over {base} grows with {scale}",
        "shrinks": "The {gain} of {arm} over {base} shrinks with {scale}",
        "reverses": "The order of {arm} and {base} reverses with {scale}",
        "changes": "The difference between {arm} and {base} changes with {scale}, but at neither end is it resolved",
        "holds": "The {gain} of {arm} over {base} holds with {scale} (it changes by less than {share})",
        "open": "Whether the {gain} of {arm} over {base} changes with {scale} is not resolved",
        "not testable":
            "Whether the gain of {arm} over {base} changes with {scale} cannot be tested: two seeds with all sizes are "
            "needed (seed=1,2,3), or one seed with four sizes.",
        "diverged":
            "Whether the gain of {arm} over {base} changes with {scale} is not tested: {k} of their runs diverged, and "
            "the others say nothing about those.",
        "ends": "{first} {unit} at {low}, {last} {unit} at {high}, {slope} per factor of ten, Holm p {p}, {n}",
        "seeds": "n = {n} seeds", "one seed": "one seed, from the scatter between sizes",
        "predicted":
            "the smaller ones predict {predicted} at {at}, and {measured} was measured (error {error}), so predictions "
            "reach up to {reach} times beyond",
        "vague":
            "the smaller ones predict {predicted} at {at}, and {measured} was measured (error {error}): too uncertain "
            "to predict anything beyond it",
        "not predicted":
            "the smaller ones predict {predicted} at {at}, but {measured} was measured (error {error}), so nothing is "
            "predicted beyond it",
        "at": "the gain of {arm} over {base} at {n} parameters and {d} tokens: {figures} {unit}",
        "too far":
            "the gain of {arm} over {base} is not predicted there: these runs allow up to {reach} times their largest "
            "{scale} ({end})",
        "two sizes": "two values of {scale} allow no check and no prediction beyond them",
    },
    "zh": {
        "N": "参数量", "D": "词元数", "colon": "：", "mark": "；", "stop": "。",
        "gain": "优势", "disadvantage": "劣势",
        "grows": "{arm} 相对 {base} 的{gain}随{scale}增大而增大",
        "shrinks": "{arm} 相对 {base} 的{gain}随{scale}增大而缩小",
        "reverses": "{arm} 与 {base} 的优劣随{scale}增大而反转",
        "changes": "{arm} 与 {base} 的差值随{scale}变化，但在两端均未能分辨",
        "holds": "{arm} 相对 {base} 的{gain}随{scale}增大保持不变（变化小于 {share}）",
        "open": "{arm} 相对 {base} 的{gain}是否随{scale}变化，未能分辨",
        "not testable":
            "无法检验 {arm} 相对 {base} 的优势是否随{scale}变化：至少需要两个在所有规模上都有结果的种子（seed=1,2,3），"
            "或一个种子和四种规模。",
        "diverged": "未检验 {arm} 相对 {base} 的优势是否随{scale}变化：其中 {k} 次运行发散，其余运行不能代表它们。",
        "ends": "{low} 时 {first} {unit}，{high} 时 {last} {unit}，每增大十倍 {slope}，Holm p {p}，{n}",
        "seeds": "n = {n} 个种子", "one seed": "一个种子，按各规模间的离散程度",
        "predicted":
            "由较小规模预测 {at} 处为 {predicted}，实测 {measured}（误差 {error}），因此预测最多可外推 {reach} "
            "倍",
        "vague":
            "由较小规模预测 {at} 处为 {predicted}，实测 {measured}（误差 {error}）：误差过大，不作外推",
        "not predicted": "由较小规模预测 {at} 处为 {predicted}，而实测 {measured}（误差 {error}），因此不作外推",
        "at": "{n} 参数、{d} 词元处 {arm} 相对 {base} 的优势：{figures} {unit}",
        "too far": "不预测该处 {arm} 相对 {base} 的优势：这些运行最多允许外推到其最大{scale}（{end}）的 {reach} 倍",
        "two sizes": "只有两个{scale}取值，无法检验，也不作外推",
    },
}  # fmt: skip

LAW_WORDS: Mapping[str, Words] = {
    "en": {
        "colon": ": ", "residual": "largest residual: {title} seed={seed}, {residual} of its loss",
        "noise": "runs scatter around the law by {sd} of their loss (1 sd){shared}",
        "shared": ", and the runs of one seed share a shift of {sd}",
        "mixed": "note: the runs also differ in {keys}; --arm '{first}=...' selects those of one value",
        "held out":
            "most expensive, {title}: {predicted} {interval} predicted from the other runs, {measured} measured "
            "(n = {runs})",
        "held out wrong":
            "warning: most expensive, {title}: {predicted} {interval} predicted from the other runs, but {measured} "
            "measured (n = {runs}): the law does not hold up to there",
        "runs repeat":
            "warning: the longest run reads its text {epochs} times; this law counts repeated tokens as new ones "
            "(--law repeated does not)",
        "budget": "{runs} runs of {flops} FLOPs (costs within {span}): best at {best} parameters{where}",
        "outside": ", outside the sizes of these runs",
        "power": "minima of these budgets: best N grows as C^{a}, best D as C^{b} (approach 2)",
        "envelope":
            "envelope of the learning curves: best N grows as C^{a} {interval}, best D as C^{b}, {sizes} sizes "
            "(approach 1)",
        "task":
            "{name} from {metric}: {ends} at low losses, {floor} at high ones, steepness {k}, middle {middle}; "
            "largest residual {worst}",
        "task at": "  {name} {value} at a loss of {loss}",
        "prediction": "{what} {n} parameters and {d} tokens: {loss} {interval}, a single run {run}",
        "run": "a run of", "best use": "best use of {flops} FLOPs:",
        "epochs": "  that is {epochs} epochs of {unique} tokens",
        "warning":
            "  warning: that is {epochs} epochs of {unique} tokens, worth {worth} new tokens: above 4 epochs repeated "
            "tokens lose value (arXiv:2305.16264)",
        "worthless":
            "  warning: that is {epochs} epochs of {unique} tokens, worth {worth} new tokens: above 40 epochs "
            "repetition adds almost nothing (arXiv:2305.16264)",
        "as new": "  warning: this law counts them as new, so the loss will be higher; more text, or --law repeated",
    },
    "zh": {
        "colon": "：", "residual": "最大残差：{title} seed={seed}，为其损失的 {residual}",
        "noise": "各次运行围绕定律的离散程度为损失的 {sd}（1 个标准差）{shared}",
        "shared": "，同一种子的运行共有 {sd} 的偏移",
        "mixed": "注意：这些运行还在 {keys} 上不同；用 --arm '{first}=...' 选取同一取值",
        "held out": "成本最高的 {title}：由其余运行预测为 {predicted} {interval}，实测 {measured}（n = {runs}）",
        "held out wrong":
            "警告：成本最高的 {title}：由其余运行预测为 {predicted} {interval}，而实测 {measured}（n = {runs}）："
            "定律在此不成立",
        "runs repeat": "警告：最长的运行把文本读了 {epochs} 遍；此定律把重复的词元当作新的（--law repeated 则不会）",
        "budget": "{flops} FLOPs 的 {runs} 次运行（成本相差不超过 {span}）：最佳参数量 {best}{where}",
        "outside": "，超出这些运行的规模",
        "power": "各预算的极小值：最佳 N 按 C^{a} 增长，最佳 D 按 C^{b} 增长（方法 2）",
        "envelope": "学习曲线的包络：最佳 N 按 C^{a} {interval} 增长，最佳 D 按 C^{b} 增长，{sizes} 种规模（方法 1）",
        "task": "由 {metric} 推 {name}：低损失时 {ends}，高损失时 {floor}，陡度 {k}，中点 {middle}；最大残差 {worst}",
        "task at": "  损失为 {loss} 时 {name} 为 {value}",
        "prediction": "{what} {n} 参数、{d} 词元：{loss} {interval}，单次运行 {run}",
        "run": "一次运行：", "best use": "{flops} FLOPs 的最佳用法：",
        "epochs": "  即把 {unique} 词元读 {epochs} 遍",
        "warning":
            "  警告：即把 {unique} 词元读 {epochs} 遍，相当于 {worth} 个新词元：超过 4 遍后重复词元的价值下降（"
            "arXiv:2305.16264）",
        "worthless":
            "  警告：即把 {unique} 词元读 {epochs} 遍，相当于 {worth} 个新词元：超过 40 遍后重复几乎无益（"
            "arXiv:2305.16264）",
        "as new": "  警告：此定律把它们当作新词元，实际损失会更高；请增加文本，或用 --law repeated",
    },
}  # fmt: skip
