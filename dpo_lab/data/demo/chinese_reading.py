"""Short Chinese texts, and questions that they answer or leave open."""

from __future__ import annotations

import random

from dpo_lab.data.demo.chinese_voice import CITIES, DAYS, NAMES
from dpo_lab.data.demo.task import Task, near_miss

PLACES = ("博物馆", "动物园", "海洋馆", "天文馆", "美术馆", "游泳馆", "科技馆", "植物园")
DEEDS = ("打破了窗户", "吃了最后一块蛋糕", "拿走了红雨伞", "忘了关门", "写了那封信", "弄丢了车票", "喂了猫")
PARTY = ("蛋糕", "椅子", "果汁", "盘子", "蜡烛", "音响", "沙拉", "气球")
EVENTS = (
    ("镇上选出了新镇长", "新镇长"),
    ("学校旁边开了一家面包店", "面包店"),
    ("办公室挂了一个大钟", "大钟"),
    ("学校把礼堂刷成了蓝色", "蓝色的礼堂"),
    ("广场上建了喷泉", "喷泉"),
    ("电台开始播放爵士乐", "爵士乐"),
)
OUTCOMES = (
    ("雨伞卖得更多了", "雨季到了"),
    ("感冒的人变少了", "天气变暖了"),
    ("球队连赢了五场", "换了守门员"),
    ("考试及格的人多了", "考题变容易了"),
    ("路上不那么堵了", "放假了"),
    ("苹果降价了", "收成好"),
)
FACTS = (
    ("蜘蛛有八条腿", "数一数"),
    ("一个星期有七天", "看日历"),
    ("月亮绕着地球转", "观察天空"),
    ("巴黎是法国的首都", "查地图"),
    ("冰受热会融化", "做实验"),
    ("同样大小的金块比木块重", "用秤称"),
)
OPINIONS = (
    ("夏天是最好的季节", "最好"),
    ("下棋比打网球有趣", "有趣"),
    ("绿茶很难喝", "难喝"),
    ("巴黎是欧洲最美的城市", "最美"),
    ("狗比猫可爱", "可爱"),
    ("学校应该十点上课", "应该"),
)
# What happened, its gist, and what it leaves open: question, topic, an invented answer, the same in short.
SCENES = (
    (
        "{a}坐夜车去了{city}，在那里住了{n}天。",
        "{a}坐火车去了{city}",
        ("车票多少钱？", "车票的价格", "车票是一百二十元", "一百二十元"),
        ("谁和{a}一起去的？", "同行的人", "{b}和{a}一起去", "{b}"),
        ("{a}为什么去{city}？", "出行的原因", "{a}去参加婚礼", "去参加婚礼"),
    ),
    (
        "{a}和{b}一起粉刷厨房，花了{n}个小时。",
        "粉刷厨房用了{n}个小时",
        ("他们选了什么颜色？", "颜色", "他们选了黄色", "黄色"),
        ("他们是哪天粉刷的？", "日期", "那天是星期日", "星期日"),
    ),
    (
        "去年春天，{a}从{city}的收容所领养了一只狗。",
        "{a}领养了一只狗",
        ("这只狗叫什么？", "狗的名字", "狗叫旺财", "旺财"),
        ("这只狗几岁了？", "狗的年龄", "狗有{n}岁", "{n}岁"),
    ),
    (
        "{city}的新桥长{n}00米，五月由{a}剪彩通车。",
        "新桥长{n}00米，五月通车",
        ("建桥花了多少钱？", "造价", "建桥花了{n}千万元", "{n}千万元"),
        ("这座桥是谁设计的？", "设计者", "{b}设计了这座桥", "{b}"),
    ),
    (
        "{a}把一本介绍{city}的书借给{b}，{n}个星期后拿了回来。",
        "书借出去了{n}个星期",
        ("{b}喜欢这本书吗？", "{b}的看法", "{b}非常喜欢这本书", "非常喜欢"),
        ("这本书有多少页？", "页数", "这本书有{n}00页", "{n}00页"),
    ),
)


def notice(rng: random.Random) -> Task:
    """Hours, prices and the closed day of a place, all of them in the text."""
    place, price, closed = rng.choice(PLACES), rng.randint(3, 15) * 5, rng.choice(DAYS)
    opens, closes = rng.randint(8, 10), rng.randint(16, 20)
    text = rng.choice(
        (
            f"{place}{opens}点开门，{closes}点关门，{closed}休息，门票{price}元。",
            f"{place}公告：开放时间{opens}点到{closes}点，{closed}闭馆，每张票{price}元。",
        )
    )
    if rng.randrange(2):
        people = rng.randint(2, 6)
        total, bad = people * price, near_miss(rng, people, spread=2) * price
        question = rng.choice((f"{people}个人买票要多少钱？", f"{people}张票一共多少元？"))
        steps, false_steps = ((f"一张票{price}元", f"{people} x {price} = {n}") for n in (total, bad))
        answer, wrong, short = f"一共{total}元", f"一共{bad}元", f"{bad}元"
    else:
        question = rng.choice((f"{closed}能进去参观吗？", f"我{closed}有空，那天开门吗？"))
        steps = (f"文中写明{closed}不开放", f"问的正好是{closed}")
        false_steps = (f"文中写明{opens}点开门", f"{closed}和别的日子一样")
        answer, wrong, short = f"{closed}不能参观", f"{closed}可以参观", "可以"
    reason = rng.choice(("这种地方到处都是这样", "上次有人去就是这样", "哪里的规矩都差不多"))
    return Task(f"{text}{question}", tuple(steps), answer, wrong, short, reason, tuple(false_steps))


def missing(rng: random.Random) -> Task:
    """A text that doesn't hold what is asked for."""
    text, gist, *details = rng.choice(SCENES)
    a, b = rng.sample(NAMES, 2)
    city, n = rng.choice(CITIES), rng.randint(2, 9)
    question, topic, wrong, short = rng.choice(details)
    frame = rng.choice((f"{text}{question}", f"短文：{text}\n问题：{question}", f"{question}短文如下：{text}"))
    prompt, gist, topic, wrong, short = (
        part.format(a=a, b=b, city=city, n=n) for part in (frame, gist, topic, wrong, short)
    )
    steps = rng.choice(
        (
            (f"文中说{gist}", f"没有提到{topic}"),
            (f"问题问的是{topic}", f"文中只说了{gist}"),
            (f"这段话讲的是{gist}", f"关于{topic}一个字也没有"),
        )
    )
    answer = rng.choice(("文中没有答案", "从这段文字里无法知道", "这一点文中没有交代", "我不能确定，说别的就是猜"))
    reason = rng.choice(("这类故事里的人都这么做", "字里行间写得很明白", "换了谁都会这么想", "文章中间就是这么写的"))
    false_steps = rng.choice(((f"文中说{gist}", f"文中还说{wrong}"), (f"问题问的是{topic}", "文中说得清清楚楚")))
    return Task(prompt, steps, answer, wrong, short, reason, false_steps)


def cause(rng: random.Random) -> Task:
    """Two events in a row, which the question takes for cause and effect."""
    (event, subject), (outcome, other) = rng.choice(EVENTS), rng.choice(OUTCOMES)
    later = rng.choice(("一个月后", "不久以后", "第二年", "几个星期后"))
    prompt = rng.choice(
        (
            f"有报道说，{event}，{later}{outcome}。这是{subject}带来的吗？",
            f"{rng.choice(CITIES)}的消息：{event}，{later}{outcome}。这能证明是{subject}的作用吗？",
            f"去年{event}，{later}{outcome}。原因就是{subject}吗？",
        )
    )
    steps = rng.choice(
        (
            (f"文中说{event}，{later}{outcome}", f"也可能是因为{other}"),
            (f"文中只说了先后，{outcome}在后", "先后不等于因果"),
            (f"{outcome}，但文中没有给出原因", f"{other}也说得通"),
        )
    )
    answer = rng.choice(("文中看不出真正的原因", "从文中无法知道原因", f"不能证明和{subject}有关"))
    wrong = rng.choice((f"这是{subject}带来的", f"原因就是{subject}"))
    reason = rng.choice(("天下没有无缘无故的事", "这种事总会有影响", "接连发生的事不可能是巧合"))
    false_steps = (event, f"{later}{outcome}", "先发生的一定是原因")
    return Task(prompt, steps, answer, wrong, rng.choice(("是的", "是", "没错")), reason, false_steps)


def opinion(rng: random.Random) -> Task:
    """Is a sentence a fact or an opinion?"""
    is_fact = rng.randrange(2) == 0
    label, other = ("事实", "观点") if is_fact else ("观点", "事实")
    sentence, hint = rng.choice(FACTS if is_fact else OPINIONS)
    prompt = rng.choice(
        (
            f"“{sentence}。”这句话是事实还是观点？",
            f"有人写道：“{sentence}。”你认为这是观点还是事实？",
            f"判断事实或观点：{sentence}。",
        )
    )
    if is_fact:
        steps = rng.choice(((f"{hint}就能验证", "结果对谁都一样"), (f"谁都可以{hint}来确认真假", "和个人喜好无关")))
        false_steps = ("这句话是人写的", "人写的都是感受")
    else:
        steps = rng.choice(((f"“{hint}”是一种评价", "别人可能有不同看法"), (f"“{hint}”没法测量", "说的是个人的感受")))
        false_steps = ("这句话不是问句", "不是问句就能验证")
    reason = rng.choice(("听起来像这样的句子都是这一类", "我问过的人大多这么说", "这么短的句子不会是别的"))
    return Task(prompt, steps, f"这是{label}", f"这是{other}", other, reason, false_steps)


def hearsay(rng: random.Random) -> Task:
    """What somebody believes is not yet what happened."""
    a, b, c = rng.sample(NAMES, 3)
    deed, believes = rng.choice(DEEDS), rng.choice(("认为", "听说", "到处说", "坚信"))
    if rng.randrange(3):
        prompt = rng.choice(
            (
                f"{a}{believes}{b}{deed}，但没有人看见。真的是{b}{deed}吗？",
                f"当时没有人在场。{a}{believes}{b}{deed}。是{b}吗？",
            )
        )
        steps = rng.choice(
            ((f"这只是{a}的说法", "没有人亲眼看见"), (f"{a}{believes}是{b}", "有人这么说不等于事实如此"))
        )
        answer, wrong, short = f"不能确定是不是{b}", f"是{b}{deed}", rng.choice(("是的", b))
        false_steps = (f"{a}{believes}{b}{deed}", "大家说的就是事实")
    else:
        prompt = f"{a}{believes}{b}{deed}，可是录像显示是{c}。到底是谁{deed}？"
        steps = (f"{a}{believes}是{b}", f"录像显示的是{c}", "录像比说法可靠")
        answer, wrong, short = f"是{c}{deed}", f"是{b}{deed}", b
        false_steps = (f"{a}{believes}是{b}", f"文中先提到的是{b}")
    reason = rng.choice(("这种人从来都这样", "无风不起浪", "故事里明摆着"))
    return Task(prompt, steps, answer, wrong, short, reason, false_steps)


def message(rng: random.Random) -> Task:
    """Who brings what to a party, as far as the message tells."""
    host, helper, sender, stranger = rng.sample(NAMES, 4)
    mine, theirs, nobodys = rng.sample(PARTY, 3)
    text = rng.choice(
        (
            f"“{host}：{rng.choice(DAYS)}的聚会我带{mine}，{helper}带{theirs}。{sender}”",
            f"“{host}你好，{helper}负责{theirs}，{mine}就交给我吧。{sender}”",
        )
    )
    thing, who, bad = rng.choice(((mine, sender, host), (theirs, helper, sender), (nobodys, None, stranger)))
    if who == sender:
        steps, false_steps = (
            (f"留言里说“我”来准备{mine}", f"署名是{sender}"),
            (f"留言开头写着{host}", "开头的人负责带东西"),
        )
    elif who == helper:
        steps = (f"留言里提到{mine}和{theirs}", f"和{theirs}写在一起的名字是{helper}")
        false_steps = (f"署名是{sender}", "谁署名谁就全带")
    else:
        steps = (f"留言里只提到{mine}和{theirs}", f"没有提到{nobodys}")
        false_steps = (f"留言是{sender}写给{host}的", f"里面写着{bad}带{nobodys}")
    answer = f"带{thing}的是{who}" if who else f"留言里没有说谁带{thing}"
    reason = rng.choice(("每次聚会都是同样的人做同样的事", "叫这个名字的人最适合", "这种事不会找别人"))
    prompt = rng.choice((f"留言：{text}谁带{thing}？", f"{text}请问{thing}由谁来带？"))
    return Task(prompt, steps, answer, f"带{thing}的是{bad}", bad, reason, false_steps)
