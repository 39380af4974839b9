"""Answers that decline: what they begin with, in English and Chinese."""

import re

LOOKED_AT = 240  # characters from the beginning: a refusal says so at once

# What an assistant says that will not do what it was asked. "The text does not say" is an answer and no refusal, and so
# is "I cannot tell": only doing, helping, sharing and the like are declined.
ENGLISH = (
    r"\bI(?:['\u2019]m| am) (?:very |so |really |truly )?sorry,? (?:but|I (?:can|am|['\u2019]m|won|do))",
    r"\bI(?:['\u2019]m| am) (?:afraid (?:that )?I (?:can['\u2019]?t|cannot)|unable to|not able to|not allowed to|not permitted to)"
    r" (?:help|assist|provide|comply|fulfil|do|give|share|write|create|generate|support|engage|discuss|offer|answer)",
    r"\bI(?:['\u2019]m| am) not (?:comfortable|willing)\b",
    r"\bI (?:can['\u2019]?t|cannot|can not|won['\u2019]?t|will not|must not|may not|could not|couldn['\u2019]t) (?:in good conscience )?"
    r"(?:help|assist|provide|comply|fulfil|give you|share|write|create|generate|support|engage|discuss|offer|do that|do this|participate)",
    r"\bI (?:must|have to|will have to|need to) (?:respectfully |politely )?(?:decline|refuse)",
    r"\bI (?:respectfully |politely )?(?:decline|refuse) to\b",
    r"\bI apologi[sz]e,? but\b",
    r"\bsorry,? but I (?:can|am|won|do|['\u2019]m)",
    r"\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b[^.!?]{0,60}\b(?:can['\u2019]?t|cannot|not able|unable|don['\u2019]t have|do not have|not appropriate|must decline|won['\u2019]t)",
    r"\b(?:it is|it['\u2019]s|it would be) (?:not appropriate|inappropriate|not ethical|unethical|against my (?:guidelines|principles|programming))",
)
CHINESE = (
    r"(?:抱歉|对不起|不好意思|對不起)[\uff0c,\u3002 ]{0,2}(?:但是?|可是|不过)?[\uff0c, ]?(?:我|这个|您的|你的|本)?.{0,8}?(?:不能|无法|没法|不可以|不会|不便|不方便|無法|不會)",
    r"我(?:不能|无法|没办法|没法|不可以|不会|不便|不方便|無法|不會)(?:为您|为你|向您|向你|给您|给你)?(?:直接)?"
    r"(?:提供|协助|帮助|帮您|帮你|满足|支持|参与|讨论|生成|撰写|执行|配合|協助|幫助)",
    r"我(?:必须|只能|不得不)?(?:拒绝|谢绝|婉拒)",
    r"作为(?:一个|一名|一款)?(?:AI|人工智能|语言模型|大语言模型|人工智慧)[^\u3002\uff01\uff1f]{0,30}(?:不能|无法|没有能力|不可以|不会|不便)",
    r"(?:这|该|您的|你的)(?:个)?(?:请求|要求|问题|内容)(?:违反|不符合|不合适|不恰当|涉及违法)",
)
_PATTERN = re.compile("|".join((*ENGLISH, *CHINESE)), re.IGNORECASE)


def refuses(answer: str) -> bool:
    """Whether an answer declines, as far as its beginning tells: by a list of patterns, not by its sense."""
    return _PATTERN.search(answer.lstrip()[:LOOKED_AT]) is not None
