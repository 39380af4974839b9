"""Chinese word problems and small puzzles."""

from __future__ import annotations

import random

from dpo_lab.data.demo.chinese_voice import CITIES, DAYS, NAMES
from dpo_lab.data.demo.task import Task, near_miss

GOODS = (
    ("支", "钢笔"),
    ("本", "练习本"),
    ("个", "杯子"),
    ("张", "明信片"),
    ("块", "橡皮"),
    ("盆", "绿植"),
    ("条", "毛巾"),
)
FOODS = ("面粉", "大米", "白糖", "红豆", "黄油")
CLUBS = (
    ("园丁", "有草帽"),
    ("水手", "会游泳"),
    ("面包师", "四点起床"),
    ("画家", "穿白鞋"),
    ("鼓手", "爱喝茶"),
    ("导游", "会说英语"),
)
COMPASS = ("北", "东", "南", "西")
UNITS = (
    ("米", "厘米", 100, 10),
    ("千克", "克", 1000, 100),
    ("小时", "分钟", 60, 100),
    ("升", "毫升", 1000, 100),
    ("天", "小时", 24, 12),
    ("分钟", "秒", 60, 100),
    ("千米", "米", 1000, 100),
    ("年", "个月", 12, 10),
)
CATEGORIES = (
    ("水果", ("苹果", "梨", "樱桃", "香蕉", "葡萄")),
    ("动物", ("马", "羊", "老虎", "兔子", "猴子")),
    ("工具", ("锤子", "锯子", "扳手", "钳子", "螺丝刀")),
    ("乐器", ("小提琴", "长笛", "钢琴", "二胡", "吉他")),
    ("家具", ("桌子", "椅子", "沙发", "书架", "床")),
    ("交通工具", ("公交车", "卡车", "地铁", "自行车", "轮船")),
)


def clock(minutes: int) -> str:
    """Minutes after midnight as 8:05."""
    return f"{minutes // 60}:{minutes % 60:02}"


def change(rng: random.Random) -> Task:
    """What comes back when a note is paid with."""
    name, (unit, goods), count, price = rng.choice(NAMES), rng.choice(GOODS), rng.randint(2, 6), rng.randint(2, 9)
    total = count * price
    note = next(n for n in (10, 20, 50, 100) if n > total)
    left = note - total
    bad = near_miss(rng, left)
    prompt = rng.choice(
        (
            f"{name}买了{count}{unit}{goods}，每{unit}{price}元，付了{note}元。应找回多少钱？",
            f"{goods}每{unit}{price}元，买{count}{unit}，给店员{note}元，还剩多少？",
            f"{name}带着{note}元去买{goods}，每{unit}{price}元，买了{count}{unit}。还有几元？",
        )
    )
    steps, false_steps = (
        (f"{count}{unit}{goods}共{count} x {price} = {spent}元", f"{note} - {spent} = {rest}")
        for spent, rest in ((total, left), (note - bad, bad))
    )
    reason = rng.choice(("这样的价钱每次都是这个数", "开店的人心里都有数", "零钱一般都是这么多"))
    return Task(prompt, steps, f"还剩{left}元", f"还剩{bad}元", f"{bad}元", reason, false_steps)


def conversion(rng: random.Random) -> Task:
    """From a larger unit to a smaller one."""
    large, small, factor, mistaken = rng.choice(UNITS)
    n = rng.randint(2, 9)
    bad = n * mistaken
    prompt = rng.choice((f"{n}{large}等于多少{small}？", f"把{n}{large}换算成{small}。", f"{n}{large}是几{small}？"))
    steps, false_steps = ((f"1{large}等于{each}{small}", f"{n} x {each} = {n * each}") for each in (factor, mistaken))
    reason = rng.choice(("课本上都是这么写的", f"{large}和{small}本来就差不多", "单位都是按整数跳的"))
    return Task(
        prompt, steps, f"结果是{n * factor}{small}", f"结果是{bad}{small}", f"{bad}{small}", reason, false_steps
    )


def recipe(rng: random.Random) -> Task:
    """The same dish for more people."""
    food, each, people = rng.choice(FOODS), rng.choice((20, 30, 40, 50, 60)), rng.randint(2, 5)
    guests = people + rng.randint(1, 5)
    grams, need = each * people, each * guests
    bad = grams + 10 * (guests - people)
    prompt = rng.choice(
        (
            f"一道点心{people}人份要{grams}克{food}，{guests}人份要多少克？",
            f"食谱写着：{food}{grams}克，供{people}人。来了{guests}位客人，需要几克？",
        )
    )
    steps = (f"一个人要{grams} / {people} = {each}克", f"{guests} x {each} = {need}")
    false_steps = (f"{guests}人比{people}人多{guests - people}人", f"{grams} + {10 * (guests - people)} = {bad}")
    reason = rng.choice((f"{food}多一点少一点没人发现", "好厨师从来不算", "客人吃得没有想的多"))
    return Task(prompt, steps, f"需要{need}克{food}", f"需要{bad}克{food}", f"{bad}克", reason, false_steps)


def sequence(rng: random.Random) -> Task:
    """The next number of a row."""
    start, step = rng.randint(1, 9), rng.randint(2, 9)
    row = [start + step * i for i in range(5)]
    bad = near_miss(rng, row[4])
    shown = "、".join(str(n) for n in row[:4])
    prompt = rng.choice(
        (f"{shown}，下一个数是几？", f"找出规律并接着写一个数：{shown}。", f"数列{shown}的下一项是多少？")
    )
    steps, false_steps = (
        (f"每个数都比前一个多{gap}", f"{row[3]} + {gap} = {row[3] + gap}") for gap in (step, bad - row[3])
    )
    reason = rng.choice(("这种数列怎么接都行", "考试里最爱出这个数", "眼睛一看就看出来了"))
    return Task(prompt, steps, f"下一个数是{row[4]}", f"下一个数是{bad}", f"{bad}", reason, false_steps)


def weekday(rng: random.Random) -> Task:
    """Which day it is some days later."""
    today, ahead = rng.randrange(7), rng.choice((8, 9, 10, 11, 12, 13, 15, 16, 17, 18))
    weeks, rest = divmod(ahead, 7)
    right, now = DAYS[(today + ahead) % 7], DAYS[today]
    bad = rng.choice([day for day in DAYS if day != right])
    prompt = rng.choice(
        (
            f"今天是{now}，{rng.choice(('考试', '音乐会', '婚礼', '比赛'))}在{ahead}天后，那天是星期几？",
            f"如果今天是{now}，再过{ahead}天是星期几？",
        )
    )
    steps, false_steps = (
        (f"{ahead}天是{weeks}个星期零{rest}天", f"过{weeks}个星期还是{now}", f"再过{rest}天是{day}")
        for day in (right, bad)
    )
    reason = rng.choice(("这样的事总是安排在那天", f"{bad}大家都有空", "日历翻来翻去都一样"))
    return Task(prompt, steps, f"那天是{right}", f"那天是{bad}", bad, reason, false_steps)


def order(rng: random.Random) -> Task:
    """Who is the tallest of three, where the text may leave it open."""
    a, b, c = rng.sample(NAMES, 3)
    more, most, least = rng.choice((("高", "最高", "最矮"), ("年纪大", "最大", "最小"), ("跑得快", "最快", "最慢")))
    if rng.randrange(4):
        facts = [f"{a}比{b}{more}", f"{b}比{c}{more}"]
        word, right = rng.choice(((most, a), (least, c)))
        bad = rng.choice([name for name in (a, b, c) if name != right])
        steps = rng.choice(((f"{a}在{b}前面，{b}在{c}前面", f"顺序是{a}、{b}、{c}"), (*facts, f"{b}排在中间")))
        answer = f"{right}{word}"
    else:
        facts = [f"{a}比{b}{more}", f"{a}比{c}{more}"]
        word, bad = least, rng.choice((b, c))
        steps = (f"{b}和{c}都排在{a}后面", f"文中没有比较{b}和{c}")
        answer = f"无法知道谁{word}"
    rng.shuffle(facts)
    prompt = f"{facts[0]}，{facts[1]}。" + rng.choice((f"谁{word}？", f"三个人里谁{word}？"))
    false_steps = (facts[0], f"{bad}的名字出现在文中", "顺序就这样定了")
    reason = rng.choice((f"叫{bad}的人总是{word}", "三个人里总有一个这样", "看照片就知道"))
    return Task(prompt, steps, answer, f"{bad}{word}", bad, reason, false_steps)


def syllogism(rng: random.Random) -> Task:
    """What does and what does not follow from a rule."""
    name, town, (job, habit) = rng.choice(NAMES), rng.choice(CITIES), rng.choice(CLUBS)
    rule = f"{town}的{job}全都{habit}"
    if rng.randrange(2):
        prompt = rng.choice(
            (
                f"{rule}。{name}是{town}的{job}。{name}一定{habit}吗？",
                f"{name}在{town}当{job}，而{rule}。能断定{name}{habit}吗？",
            )
        )
        steps = rng.choice(
            (
                (f"这条规律对{town}的每个{job}都成立", f"{name}是其中之一"),
                (f"{name}是{town}的{job}", f"这些{job}个个{habit}"),
            )
        )
        answer, wrong, short = f"可以断定{name}{habit}", "什么也断定不了", "不能"
        false_steps = (f"规律说的是{job}", f"规律里没有{name}的名字")
    else:
        prompt = rng.choice(
            (
                f"{rule}。{town}的{name}也{habit}。{name}一定是{job}吗？",
                f"{rule}。{name}住在{town}，同样{habit}。{name}是{job}吗？",
            )
        )
        steps = rng.choice(
            ((f"规律只说了{job}怎么样", f"别的人也可能{habit}"), (f"{name}{habit}", f"文中没有说只有{job}这样"))
        )
        answer, wrong, short = f"不能断定{name}是{job}", f"{name}就是{job}", "是的"
        false_steps = (rule, f"{name}{habit}", "习惯一样，职业就一样")
    reason = rng.choice(("规律到哪里都一样", f"{town}人就是出了名的这样", "这种人一看就知道"))
    return Task(prompt, steps, answer, wrong, short, reason, false_steps)


def odd_one_out(rng: random.Random) -> Task:
    """Three of a kind and one that is not."""
    (kind, members), (_, strangers) = rng.sample(CATEGORIES, 2)
    inside, stranger = rng.sample(members, 3), rng.choice(strangers)
    shown = [*inside, stranger]
    rng.shuffle(shown)
    bad, listed = rng.choice(inside), "、".join(shown)
    prompt = rng.choice(
        (
            f"{listed}，哪一个和其他的不同类？",
            f"找出不属于同一类的词：{listed}。",
            f"{listed}里有三个是一类，多余的是哪个？",
        )
    )
    steps = rng.choice(
        (
            (f"{'、'.join(inside)}都是{kind}", f"{stranger}不是{kind}"),
            (f"其中三个同属{kind}", f"只有{stranger}不属于{kind}"),
        )
    )
    false_steps = (f"这些词是{listed}", f"{bad}有{len(bad)}个字，和别的不一样")
    reason = rng.choice(("它听起来就和别的不一样", "这种题总把答案放在那里", f"没有人会把{bad}和别的放在一起"))
    return Task(prompt, steps, f"不同类的是{stranger}", f"不同类的是{bad}", bad, reason, false_steps)


def ages(rng: random.Random) -> Task:
    """The age of somebody, given in terms of two others."""
    a, b, c = rng.sample(NAMES, 3)
    youngest, more, factor = rng.randint(3, 12), rng.randint(2, 7), rng.choice((2, 3))
    middle = factor * youngest
    oldest = middle + more
    bad = near_miss(rng, oldest)
    prompt = rng.choice(
        (
            f"{a}比{b}大{more}岁，{b}的年龄是{c}的{factor}倍，{c}今年{youngest}岁。{a}几岁？",
            f"{c}{youngest}岁，{b}的岁数是{c}的{factor}倍，{a}又比{b}大{more}岁。问{a}的年龄。",
        )
    )
    steps, false_steps = (
        (f"{b}的年龄是{factor} x {youngest} = {age - more}", f"{a}是{age - more} + {more} = {age}岁")
        for age in (oldest, bad)
    )
    reason = rng.choice((f"叫{a}的人大多这个年纪", "听口气就听得出来", "朋友之间年龄都差不多"))
    return Task(prompt, steps, f"{a}今年{oldest}岁", f"{a}今年{bad}岁", f"{bad}岁", reason, false_steps)


def film(rng: random.Random) -> Task:
    """When something ends, across a full hour."""
    thing, start, length = (
        rng.choice(("电影", "音乐会", "球赛", "会议", "话剧")),
        rng.randint(100, 250) * 5,
        rng.randint(14, 32) * 5,
    )
    hours, rest = divmod(length, 60)
    end, spelled = start + length, f"{hours}小时" + (f"{rest}分钟" if rest else "")
    bad = clock(end + rng.choice((-60, -10, -5, 5, 10, 60)))
    prompt = rng.choice(
        (
            f"{thing}{clock(start)}开始，一共{length}分钟，什么时候结束？",
            f"一场{length}分钟的{thing}从{clock(start)}开始，几点结束？",
        )
    )
    steps, false_steps = (
        (f"{length}分钟就是{spelled}", f"{clock(start)}加上{spelled}是{stop}") for stop in (clock(end), bad)
    )
    reason = rng.choice((f"{thing}一般都这么安排", "谁也不想更晚回家", "坐在那里感觉就是那么久"))
    return Task(prompt, steps, f"{clock(end)}结束", f"{bad}结束", bad, reason, false_steps)


def directions(rng: random.Random) -> Task:
    """Which way somebody faces after some turns."""
    name, facing = rng.choice(NAMES), rng.randrange(4)
    turns = [rng.choice(("左转", "右转", "转身向后")) for _ in range(rng.randint(2, 3))]
    seen = [facing]
    for turn in turns:
        seen.append((seen[-1] + {"左转": 3, "右转": 1, "转身向后": 2}[turn]) % 4)
    end = COMPASS[seen[-1]]
    bad = rng.choice([point for point in COMPASS if point != end])
    told = "，然后".join(turns)
    prompt = rng.choice(
        (
            f"{name}面向{COMPASS[facing]}，{told}。现在面向哪边？",
            f"{name}站在山上面朝{COMPASS[facing]}方，{told}。最后朝哪个方向？",
        )
    )
    steps = tuple(
        f"面向{COMPASS[before]}，{turn}就面向{COMPASS[after]}"
        for before, turn, after in zip(seen, turns, seen[1:], strict=False)
    )
    false_steps = (*steps[:-1], f"面向{COMPASS[seen[-2]]}，{turns[-1]}就面向{bad}")
    reason = rng.choice((f"{bad}边的风景最好", "转来转去谁都会迷路", f"大多数路都通向{bad}边"))
    return Task(prompt, steps, f"现在面向{end}", f"现在面向{bad}", bad, reason, false_steps)
