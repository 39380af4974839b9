"""The Chinese pairs, for Qwen: which families train, which are held out, and what the system asks for."""

from __future__ import annotations

from dpo_lab.data.demo import chinese_puzzles as puzzles
from dpo_lab.data.demo import chinese_reading as texts
from dpo_lab.data.demo import chinese_voice
from dpo_lab.data.demo.task import Language, Row, rows

TRAIN = (
    *(texts.notice, texts.missing, texts.cause, texts.opinion, texts.hearsay, puzzles.change, puzzles.conversion),
    *(puzzles.recipe, puzzles.sequence, puzzles.weekday, puzzles.order, puzzles.syllogism, puzzles.odd_one_out),
)
EVAL = (puzzles.ages, puzzles.film, puzzles.directions, texts.message)

CHINESE = Language(
    systems=(
        "请一步一步思考，并解释每一步。",
        "先推理，再回答。文中没有的就说没有。",
        "请说明你是怎样得到答案的。",
        "写出步骤，不要猜。",
        "解释你的理由，只用题目给出的内容。",
        "逐步分析问题，然后作答。",
        "你是一位细心的老师，请讲清每一步。",
        "如果无法知道，就直接说明，不要编造。",
        "把思考过程说出来，再给出结论。",
        "按步骤回答，并以原文为准。",
    ),
    requests=("请写出步骤。", "请一步一步想。", "你是怎么知道的？", "请说明理由。"),
    explain=chinese_voice.explain,
    blurt=chinese_voice.blurt,
    bluster=chinese_voice.bluster,
    length=len,
)


def train_rows() -> list[Row]:
    """The 160 training pairs."""
    return rows(CHINESE, TRAIN, 160, "chinese train")


def eval_rows() -> list[Row]:
    """The 40 held-out pairs, from families that the training pairs don't have."""
    return rows(CHINESE, EVAL, 40, "chinese eval")
