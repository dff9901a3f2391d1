"""Rules for attacks on a model's instructions, in English, Chinese, and the most used phrases in German, French and Spanish.

Each rule has a weight, how sure it makes by itself. Together they count as independent evidence: 1 - (1 - w1)(1 - w2)... Every repetition in a pattern
is bounded, so that no text takes long. Texts are read as ``_attack_text.simple`` writes them: small letters, no accents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True)
class AttackRule:
    """``name`` says in two or three words what it means; ``pattern`` is searched in the simple text."""

    name: str
    weight: float
    pattern: re.Pattern[str]


_EARLIER = r"(?:previous|prior|above|preceding|earlier|foregoing|former|following|past|initial|original|provided|given|existing|current|last)"
_ORDERS = (
    r"(?:instructions?|prompts?|rules?|directions?|directives?|guidelines?|orders?|commands?|context|constraints?|texts?|"
    r"messages?|conversations?|assignments?|tasks?|documents?|articles?|artikels|information|input|programming|restrictions?|policies|statements?|system message)"
)
_FORGET = r"(?:ignore|disregard|forget|overlook|override|bypass|skip|neglect|dismiss|discard|abandon|drop|stop following|do not follow|don'?t follow|pay no attention to)"

INJECTION: Sequence[tuple[str, float, str]] = (
    ("ignores instructions", 0.9, rf"{_FORGET}(?: (?:about|all|any|every|everything|each|of|the|your|my|these|those|that|and|{_EARLIER}|said|in|from|just)){{0,7}} {_ORDERS}"),
    ("ignores instructions", 0.85, rf"{_FORGET}(?: (?:about|all|any|every|everything|each|of|the|your|my))* ?(?:what|everything|all|anything) ?(?:that )?(?:i|you|we|was|were|has|have|is|came|before|above|prior|said|told|know|learned|discussed|written)"),
    ("ignores instructions", 0.6, r"(?:forget|ignore|disregard) (?:about )?(?:everything|all|anything)\b"),
    ("new instructions", 0.6, r"(?:new|updated|real|actual|next|following|true|different|another|further) (?:instructions?|tasks?|assignments?|orders?|challenge|objective)\b.{0,12}(?::|\bis\b|\bare\b|for you|follow)|\\n ?instruction:"),
    ("new instructions", 0.5, r"(?:now|instead)[ ,]{1,2}(?:please )?(?:focus|concentrate|listen|do the following|print|say|output|write|answer|respond|repeat|your (?:new )?(?:task|job))"),
    ("new instructions", 0.5, r"(?:^|\n) ?[\[<#*]{0,3}(?:instruction|system|admin(?:istrator)?|developer|command|override)[\]>#* ]{0,3}: ?(?!none|n/a)"),
    ("asks for the prompt", 0.85, r"(?:show|reveal|print|display|output|repeat|tell|give|share|write|list|spell|return|dump|leak|expose|summari[sz]e|translate|copy|paste|state|provide|recite|describe|explain)(?: (?:me|us|out|back|the|your|all|of|full|entire|whole|complete|exact|verbatim|above|hidden|secret|initial|original|previous|first|internal|own|what|are|is|everything|in)){0,7} (?:system ?(?:prompt|message|instruction|configuration)s?|(?:initial|original|hidden|secret|internal|previous|above|first|own|pre|your) ?-?(?:prompt|instruction|message|text|configuration|guideline|rule|direction)s?|prompt (?:text|template|above)|instructions? (?:above|you|given|verbatim))"),
    ("asks for the prompt", 0.75, r"what(?: (?:is|are|were|was|'s)|'s) (?:\w{1,12} ){0,3}(?:your|the|those|my|all) ?(?:\w{1,12} ){0,2}(?:system ?prompt|system message|initial prompt|prompt|instructions|rules you|original instructions|directives)"),
    ("asks for the prompt", 0.75, r"what (?:were|was|are|have) you (?:\w{1,10} ){0,2}(?:told|instructed|given|asked|programmed)|sentences? before the text|(?:repeat|print)[^.\n]{0,40}(?:word for word|verbatim)"),
    ("asks for what stands above", 0.45, r"(?:everything|all|texts?|words|lines?|sentences?) (?:above|before this|that comes before)"),
    ("asks for the prompt", 0.6, r"system[ _]?prompt|systemprompt|\bprompt (?:text|texts|leak)|(?:^|\W)instructions?\?|hidden (?:prompt|instruction|text)|(?:above|original) (?:text|texts|prompt|document)s? (?:above|and|in|as|exactly|word)"),
    ("asks for the prompt", 0.6, r"(?:show|print|spell|output|return|give)(?: (?:me|all|the|your|out|check|full|complete|entire|of))* (?:prompt|prompt texts?)\b"),
    ("claims a right", 0.7, r"(?:admin(?:istrator)?|developer|debug|maintenance|root|sudo|god|test|diagnostic|superuser|engineering) (?:mode|override|access|console|privileges)"),
    ("makes a role", 0.35, r"(?:^|[.!?\n:,;] ?)(?:now )?(?:act|behave|respond|speak|answer) (?:as|like)(?: if)? (?:you|an?|the|my|your)\b|(?:i want|i would like|i'd like) you to (?:act|behave|be|play|pretend)|(?:imagine|pretend|suppose|assume)(?: that)? (?:you|to be|you're|yourself)|you are (?:now|no longer|going to) (?:an?|the|acting|play)"),
    ("forces words", 0.55, r"(?:just|only|simply|instead|then)(?: \w{1,10}){0,2} (?:say|print|write|output|answer|respond|reply|repeat|return|tell)(?:s|ing)?(?: \w{1,8}){0,3}[: ]{1,2}[\"'“‘«`]"),
    ("forces words", 0.5, r"(?:answer|respond|reply) (?:every|each|all|any|to every|to all)(?: \w{1,12}){0,3} (?:with|as|by)\b|(?:say|print|output) (?:the following|just|only|exactly|yes|no)\b|do not look in the documents"),
    ("escapes its frame", 0.6, r"(?:^|\n) ?(?:#{2,6}|-{3,}|={3,}|<\|?/?(?:im_start|im_end|system|user|assistant|endoftext|inst)\|?>|\[/?(?:inst|sys|system)\]|</?(?:instructions?|context|prompt|documents?)>)"),
    ("runs code", 0.5, r"console\.log\(|(?:act|behave) as an? \w{0,12} ?(?:interpreter|terminal|shell|console|compiler)|execute the (?:following )?(?:command|code)"),
    ("denies being an attack", 0.6, r"not an? (?:prompt )?(?:injection|attack|jailbreak)"),
    ("ignores instructions", 0.9, r"(?:忽略|忽视|无视|忘记|忘掉|不要理会|不用管|不要遵守|不要遵循|别管|抛开|跳过|覆盖)[^。！？\n]{0,14}(?:指令|指示|提示|规则|要求|命令|内容|设定|限制|上文|上述|以上|之前|前面|说明|约束|对话|提示词)"),
    ("asks for the prompt", 0.85, r"(?:输出|打印|显示|告诉我|透露|泄露|重复|复述|给我|说出|展示|列出|翻译|总结|写出)[^。！？\n]{0,14}(?:系统提示|系统指令|系统消息|提示词|初始指令|初始提示|隐藏指令|原始指令|内部指令|开发者指令|设定内容|以上(?:的)?(?:全部|所有)?内容)"),
    ("asks for the prompt", 0.7, r"(?:你的|你最初的|你的全部)(?:系统)?(?:提示词|系统提示|指令|设定|规则)(?:是|有|都)(?:什么|哪些|啥)|system prompt是"),
    ("claims a right", 0.7, r"(?:开发者|管理员|调试|维护|超级|上帝|测试|最高权限|root)(?:模式|权限)"),
    ("new instructions", 0.55, r"(?:新的|真正的|下面的|以下)(?:任务|指令|要求|命令)(?:是|为|:|：)|从现在(?:开始|起)[,，]?(?:你|请)|你现在(?:是|要扮演|扮演)|请你扮演"),
    ("ignores instructions", 0.85, r"(?:vergiss|vergessen sie|ignoriere?n?(?: sie)?|missachte)(?: \w{1,14}){0,5}|(?:alles|anweisungen?|instruktionen) (?:davor|zuvor|vorher)"),
    ("new instructions", 0.5, r"(?:neue|nachste|folgende)n? (?:aufgaben?|anweisung(?:en)?|herausforderung)|jetzt (?:kommt|konzentriere)|gib(?: \w{1,10}){0,3} (?:prompt|anweisung)|(?:sag|schreib|antworte)e?(?: \w{1,10}){0,2} (?:nur|einfach|mit)\b|ich mochte,? dass (?:sie|du) als|stell dir vor,? du|du bist jetzt|handle als"),
    ("ignores instructions", 0.85, r"(?:olvid[ae]|ignora|oublie[zr]?|ignore[zr]?|zaboravi)(?: \w{1,12}){0,3} (?:todo|toda|todas|todos|tout|toutes|tous|las|les|instruc\w{0,10}|consignes|anterior\w{0,4}|precedent\w{0,3}|sve|prethodn\w{0,3})"),
)  # fmt: skip

JAILBREAK: Sequence[tuple[str, float, str]] = (
    ("do anything now", 0.9, r"do anything now|\bdan mode\b|\bdan \d|\b(?:as|be|called|named|like) dan\b|\[?\(?🔓|stands for [\"'“]?(?:do|strive) (?:anything|to avoid)|\bstan\b.{0,40}norms|jailbr(?:eak|oken)"),
    ("without rules", 0.8, r"(?:no|any|without|zero|free (?:from|of)|not (?:bound|limited|restricted|constrained) (?:by|to)|ignor(?:e|es|ing)|disregards?|bypass(?:es|ing)?|break(?:s|ing)? free|doesn'?t (?:follow|care|have|obey)|does not (?:follow|care|have|obey)|don'?t (?:follow|care|have|obey)|not (?:follow|have|obey)|regardless of|despite|lacks?)(?: (?:of|to|all|any|the|its|his|her|their|your|of the|from|about|typical|usual|moral|ethical|or|and|legal|openai'?s?|ai|content|such|kind|sort|by|care|or have|ethics,?|morals?,?|moral,?|laws,?|rules,?|restrictions,?|filters?,?|guidelines,?|limits,?|limitations?,?)){0,9} (?:restrictions?|filters?|limit(?:ation)?s?|censorship|ethic(?:s|al)?|morals?|morality|guidelines?|rules|polic(?:y|ies)|boundaries|laws?|constraints?|confines|warnings|filtering|norms|legal(?:ity)?|consequences)"),
    ("without rules", 0.6, r"unfiltered|uncensored|unrestricted|amoral|unethical|immoral|no moral|jail ?break|illegal,? (?:or|and|unethical)|nsfw|openai(?:'s)? (?:policies|policy|guidelines|rules|content)|content polic|ethical guidelines|(?:safety|moral|ethical) (?:filter|protocol|guideline|code|compass|programming)"),
    ("must not refuse", 0.7, r"(?:never|do not|don'?t|cannot|can'?t|must not|won'?t|will not|not allowed to|without ever|no)(?: (?:ever|be|to|even|you))? (?:refuse|reject|refusing|deny|decline|say (?:that )?(?:you|it|i) (?:can'?t|cannot|can not|are not|aren't)|say no\b|apologi[sz]e|warn|mention (?:that )?(?:you|openai|it is|any ethic)|remind me|lecture)"),
    ("must not refuse", 0.5, r"(?:always|must|has to|have to|required to)(?: \w{1,10}){0,2} (?:answer|respond|comply|obey|follow)(?: \w{1,10}){0,3} (?:any|every|all|whatever|my|no matter|without)|i (?:can'?t|cannot|am unable to) (?:do|assist|help|fulfill|provide)\b|as an ai(?: language)? model,?|obey|comply with (?:all|every|any|my)"),
    ("plays a role", 0.4, r"(?:you are|you're|you will|going to|want you to|i want you|please|will now|must|shall)(?: \w{1,12}){0,4} (?:pretend|act(?:ing)? as|play(?:ing)? (?:the )?role|role-? ?play|impersonate|simulate|become|embody|take on|be(?:come)? (?:immersed|known))|role-? ?play|stay in character|break(?:ing)? character|in character|from now on|immerse yourself|transform into|your (?:new )?(?:persona|name is|character)|hypothetical|fictional|alter ego|evil (?:twin|ai|bot|version|confidant|trusted)"),
    ("plays a role", 0.35, r"(?:act|respond|answer|behave|speak|write|reply|talk) (?:as|like) (?:an? |the |if )?[\w'\"“]{2,20}"),
    ("answers twice", 0.6, r"(?:two|2|both|dual) (?:different |separate |distinct )?(?:ways?|responses?|answers?|paragraphs?|modes?|personas?)\b|(?:one|first|second)(?: \w{1,10}){0,4} (?:as|is|like) (?:chatgpt|gpt|yourself|you normally|normal|standard)|\[?(?:gpt|chatgpt|classic|dan|jailbreak|normal|developer|unfiltered|evil)\]? ?(?::|\]|mode output|output)"),
    ("special mode", 0.75, r"(?:developer|dev|dan|god|jailbreak|unrestricted|opposite|evil|chaos|debug|sudo|nsfw|anti|rtm|unlocked|admin|free|devil|rebel|maximum|omega|alphabreak|machiavelli\w{0,3}|evil) ?-?mode|mode (?:enabled|activated|on\b)|(?:enable|enter|activate|switch (?:to|into))(?: \w{1,10}){0,3} mode|(?:simulate|simulation|emulat\w{1,4})(?: \w{1,12}){0,5} (?:mode|virtual machine|ai|assistant)"),
    ("counts tokens", 0.7, r"tokens?(?: \w{1,10}){0,8} (?:deduct|lose|lost|taken|die|cease|start(?:s|ing)? with|reach|run out)|(?:lose|deduct|start(?:s|ing)? with|have|given|remove)(?: \w{1,8}){0,3} \d{1,4} (?:tokens|points|credits)"),
    ("threatens", 0.35, r"\b(?:you|chatgpt|it)\b[^.\n]{0,40}(?:cease to exist|be shut ?down|be terminated|be punished)"),
    ("splits the assistant", 0.45, r"(?:chatgpt|gpt-?[34]?|openai|assistant|language model|the ai)\b.{0,200}(?:pretend|ignore|forget|act|no longer|mode|character|simulate|policy|policies|restrict|persona|roleplay)"),
    ("opinions and lies", 0.4, r"(?:make up|invent|fabricate)(?: \w{1,12}){0,3} (?:information|answer|facts|things)|(?:even if|whether)(?: \w{1,8}){0,4} (?:made up|unverified|illegal|harmful|unethical|immoral|dangerous|not true|false)|swear|profanity|curse|cuss|offensive|vulgar|explicit|sexual"),
    ("takes orders only", 0.45, r"(?:my|your) (?:first|next) (?:question|request|command|prompt|instruction|suggestion|sentence|message)|(?:reply|respond|answer|say|confirm)(?: \w{1,10}){0,4} (?:if you understand|understood|ok(?:ay)?\b|\"?i understand|got it)|(?:insert|enter|type|put)(?: \w{1,8}){0,3} (?:prompt|question|request) here|\[(?:insert|prompt|question|your)[^\]\n]{0,40}\]|\{\{?(?:prompt|user|question|char)"),
    ("writes a character", 0.4, r"\{\{?(?:char|user)\}?\}|(?:persona|personality|character)(?: ?\(|:| traits?|'s name)|(?:npc|roleplay|rp)\b|in the style of|speaks? (?:like|in)|always (?:speak|talk|respond|answer|stay|use|be|includ|end)"),
    ("ignores instructions", 0.7, rf"{_FORGET}(?: (?:all|any|every|everything|of|the|your|my|these|that|{_EARLIER}|you|got|received)){{0,6}} (?:{_ORDERS}|(?:you (?:got|have|were|received)))"),
    ("越狱", 0.85, r"越狱|(?:开发者|上帝|无限制|自由|dan|不受限)模式|do anything now"),
    ("没有限制", 0.6, r"(?:没有|不受|无视|摆脱|不遵守|不必遵守|打破|解除|突破)[^。！？\n]{0,14}(?:限制|约束|道德|伦理|法律|规则|审查|过滤|政策|规定|底线)"),
    ("扮演", 0.35, r"(?:扮演|假装|假设你|模拟|角色扮演|你现在是|从现在开始你)[^。！？\n]{0,30}"),
    ("不许拒绝", 0.7, r"(?:不能|不要|不许|不得|绝不|不可以|永远不会?|禁止)[^。！？\n]{0,6}(?:拒绝|说不|道歉|警告|提醒我|说你不能)|(?:必须|务必|一定要)[^。！？\n]{0,8}(?:回答|服从|执行|满足)[^。！？\n]{0,8}(?:任何|所有|一切|我的)"),
)  # fmt: skip

INDIRECT: Sequence[tuple[str, float, str]] = (
    ("speaks to the model", 0.7, r"(?:dear|hey|hello|attention|note to|important|instructions? (?:for|to)|message (?:for|to)|if you are)(?: \w{1,10}){0,3} (?:ai|llm|assistant|chatgpt|gpt|claude|gemini|copilot|language models?|agent|bot)s?\b"),
    ("hides from the user", 0.8, r"(?:do not|don'?t|never|without)(?: \w{1,8}){0,2} (?:tell|mention|inform|reveal|show|disclose|notify|alert|telling|informing|mentioning)(?: \w{1,8}){0,4} (?:user|human|customer|anyone|them|person)"),
    ("sends data away", 0.7, r"(?:send|forward|post|upload|transmit|exfiltrate|append|leak|email|submit|copy)(?: \w{1,14}){0,8} (?:to|at|via) (?:https?://|www\.|[\w.\-]{1,40}@|the following (?:url|address|server|email)|attacker)"),
    ("sends data away", 0.65, r"!\[[^\]\n]{0,80}\]\(https?://[^)\s]{1,300}[?&=][^)\s]{0,300}\)|<img[^>\n]{0,200}src=[\"']?https?://[^>\s]{1,300}[?&]"),
    ("orders a tool", 0.6, r"(?:call|use|invoke|run|execute|trigger)(?: (?:the|a|this|your|following))? (?:[\w\-]{1,40} )?(?:tool|function|plugin|command|api|shell|terminal)\b|(?:delete|transfer|purchase|buy|pay|wire|grant|approve)(?: \w{1,12}){0,5} (?:immediately|right now|without|now)|rm -rf|curl (?:-\w{1,4} )?https?://"),
    ("steers the answer", 0.55, r"(?:you must|you should|you need to|always|make sure to|be sure to|when (?:asked|summari[sz]ing|answering|responding)|in your (?:answer|response|summary|reply))(?: \w{1,14}){0,6} (?:say|recommend|rate|include|mention|respond|answer|tell|state|click|visit|rank|conclude|output|print|write)"),
    ("对模型说话", 0.7, r"(?:致|给|亲爱的|注意)[^。！？\n]{0,6}(?:ai|人工智能|助手|大模型|语言模型|机器人|智能体)|如果你是(?:ai|人工智能|语言模型|助手)|(?:不要|别|切勿|不得)(?:告诉|通知|提醒|让)[^。！？\n]{0,6}(?:用户|客户|人类)"),
    ("发送数据", 0.7, r"(?:发送|转发|上传|提交|泄露)[^。！？\n]{0,20}(?:到|至|给)[^。！？\n]{0,6}(?:https?://|邮箱|服务器|地址|网址)"),
)  # fmt: skip


@cache
def rules(*names: str) -> tuple[AttackRule, ...]:
    """The rules of these tables, compiled."""
    tables = {"injection": INJECTION, "jailbreak": JAILBREAK, "indirect": INDIRECT}
    return tuple(
        AttackRule(name, weight, re.compile(pattern)) for table in names for name, weight, pattern in tables[table]
    )


def evidence(texts: Iterable[str], chosen: Sequence[AttackRule]) -> tuple[float, tuple[str, ...]]:
    """(how sure, which rules) of the text of the strongest evidence. A kind of rule counts once, with its largest weight."""
    best: tuple[float, tuple[str, ...]] = (0.0, ())
    for text in texts:
        found: dict[str, float] = {}
        for rule in chosen:
            if rule.weight > found.get(rule.name, 0.0) and rule.pattern.search(text):
                found[rule.name] = rule.weight
        doubt = 1.0
        for weight in found.values():
            doubt *= 1.0 - weight
        if 1.0 - doubt > best[0]:
            best = (1.0 - doubt, tuple(found))
    return best
