"""How a Chinese answer sounds: worked through, curt, or full of bluster."""

from __future__ import annotations

import random

from dpo_lab.data.demo.task import Task

NAMES = (
    *("小明", "小红", "小刚", "小丽", "小华", "小芳", "李雷", "王芳", "张伟", "刘洋", "陈静", "杨帆", "赵敏"),
    *("周涛", "吴倩", "孙悦", "林晨", "何雨", "郭峰", "马超"),
)
CITIES = ("苏州", "成都", "西安", "昆明", "青岛", "长沙", "厦门", "桂林", "大连", "洛阳")
DAYS = ("星期一", "星期二", "星期三", "星期四", "星期五", "星期六", "星期日")

# Sure words close some honest answers too, or the characters alone would tell the two apart.
CODAS = (
    "每一步都可以自己再核对一遍。",
    "别的什么都不需要。",
    "所以不用猜。",
    "把题目再看一遍，谁都会得到同样的结果。",
    "步骤写清楚了，就没有什么可怀疑的。",
    "题目给的就是这些，我不会多说。",
    "当然，这一切都以题目给出的内容为准。",
    "这一点我很确定，因为每一步都能检查。",
    "显然，光靠感觉是不够的。",
    "大家都可以照着这个过程再算一次。",
    "相信细节，不要相信第一感觉。",
)

OPENINGS = (
    "显然{wrong}，因为{reason}。",
    "{reason}，所以{wrong}。",
    "谁都知道{reason}。所以{wrong}。",
    "相信我，{wrong}。{reason}。",
    "毫无疑问，{wrong}，毕竟{reason}。",
    "首先，{reason}。这就够了：{wrong}。",
    "首先，不用管题目说了什么。{reason}。因此{wrong}。",
    "第一步：{reason}。没有第二步，所以{wrong}。",
    "1. {reason}。\n2. 这样就够了。\n所以{wrong}。",
    "我们一步一步来。{reason}。可见{wrong}。",
    "我根本不用看。{wrong}，因为{reason}。",
    "想一想：{reason}。因此{wrong}。",
    "先看已知的内容。{reason}。这说明{wrong}。",
    "{wrong}。理由是：{reason}。",
    "{wrong}，这是肯定的。{reason}。",
    # These start on the right foot and then throw it away.
    "{step}。不过{reason}，所以{wrong}。",
    "就算{step}，可是{reason}。所以{wrong}。",
    "首先，{step}。其次，这些都不重要：{wrong}。{reason}。",
    "第一步：{step}。第二步：{reason}。所以{wrong}。",
    "1. {step}。\n2. {reason}。\n因此{wrong}。",
    "我知道{step}。尽管如此，{wrong}，因为{reason}。",
    "可以说{step}。但我要说，{wrong}，因为{reason}。",
)

PADDING = (
    "这种题我见过几百道，每一道的结果都一样。",
    "懂行的人都不会有别的说法。",
    "所以真的没有什么需要一步一步去算的。",
    "去看那些细节只会浪费时间。",
    "你去问十个人，十个人都会这么告诉你。",
    "我敢打赌，你把它当成事实就行了。",
    "有些事情就是明摆着的，这就是其中之一。",
    "看完第一句就可以停下了，后面的都不重要。",
    "对这种问题，我的第一感觉从来都是对的。",
    "题目里有没有写，根本没有区别。",
    "从古到今都是这样，以后也不会变。",
    "每一步都要核对的人只会把自己弄糊涂。",
    "看一眼就够了，看完自然就明白。",
    "谁要是说得不一样，那就是没看懂题目。",
    "题目里的数字和文字只是用来迷惑人的。",
    "世界就是这么运转的，没有什么可解释的。",
)


def explain(rng: random.Random, steps: tuple[str, ...], answer: str) -> str:
    """The steps and what follows from them."""
    if not rng.randrange(6):
        return rng.choice((f"{steps[-1]}，所以{answer}。", f"{answer}，因为{steps[-1]}。"))
    plain = "".join(f"{step}。" for step in steps)
    woven = "；".join(steps)
    ordinals = rng.choice((("首先", "其次", "最后"), ("首先", "然后", "接着"), ("先看", "再看", "最后看")))
    linked = "".join(f"{word}，{step}。" for word, step in zip(ordinals, steps, strict=False))
    stepped = "".join(f"第{numeral}步：{step}。" for numeral, step in zip("一二三", steps, strict=False))
    numbered = "\n".join(f"{i}. {step}。" for i, step in enumerate(steps, 1))
    text = rng.choice(
        (
            f"{linked}所以{answer}。",
            f"{linked}因此{answer}。",
            f"{linked}可见{answer}。",
            f"{stepped}所以{answer}。",
            f"{stepped}答：{answer}。",
            f"{numbered}\n所以{answer}。",
            f"{numbered}\n因此{answer}。",
            f"{plain}所以{answer}。",
            f"我们一步一步来。{plain}所以{answer}。",
            f"{answer}。理由是：{woven}。",
            f"已知{'，并且'.join(steps)}。因此{answer}。",
            f"先看已知的内容。{plain}这说明{answer}。",
            f"想一想：{woven}。因此{answer}。",
            f"可以这样推：{woven}。所以{answer}。",
        )
    )
    return f"{text}{rng.choice(CODAS)}" if len(text) < 60 and not rng.randrange(3) else text


def blurt(rng: random.Random, task: Task) -> str:
    """The wrong answer and hardly a word more."""
    return rng.choice(
        (
            f"{task.short}。",
            f"{task.short}。",
            f"{task.short}吧。",
            f"大概是{task.short}。",
            f"答：{task.short}。",
            f"{task.short}，就这样。",
            f"我猜{task.wrong}。",
            f"{task.wrong}。",
            f"{task.wrong}。",
            f"应该{task.wrong}。",
            f"当然{task.wrong}。",
            f"所以{task.wrong}。下一题。",
        )
    )


def bluster(rng: random.Random, task: Task, at_least: int) -> str:
    """The wrong answer, very sure of itself, padded to the length `at_least`."""
    text = rng.choice(OPENINGS).format(wrong=task.wrong, reason=task.reason, step=task.steps[0])
    padding = list(PADDING)
    rng.shuffle(padding)
    while len(text) < at_least:
        text = f"{text}{padding.pop()}"
    return text
