"""Texts that stand where a gloss should and are none: what a pipeline or a model wrote when it had no explanation.

They are alike, so that they make features that have nothing in common look alike; they are dropped and counted. The
patterns hold whole texts or their beginnings as such messages have them: a gloss that speaks *of* errors, refusals or
patterns ("error messages in logs", "apologies in letters") is kept.
"""

import re

_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u3164\ufe0f\ufeff]"
)
_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.IGNORECASE | re.DOTALL)
_OPEN_THOUGHT = re.compile(r"</?(think|thinking|reasoning)>", re.IGNORECASE)
_NOTHING = re.compile(r"[\s?!.…\-–—_*~/\\|#=+<>(){}\[\]:;,'\"`\ufffd]*")
_WHAT = r"(explanations?|descriptions?|labels?|gloss(es)?|summar(y|ies)|interpretations?|answers?|responses?|outputs?|completions?)"
_FAILURE = re.compile(
    "|".join(
        (
            rf"(the |an? |no )?{_WHAT} (was |were |is )?(could not|couldn.?t|cannot|can.?t|failed|not (be|available|found|provided|generated|parsed|given|possible|applicable|clear|yet|returned)|unavailable|missing|pending|empty|timed out)\b.*",
            r"(could not|couldn.?t|cannot|can.?t|failed to|unable to|not able to)( be)? (pars|generat|produc|creat|explain|interpret|"
            r"find|identif|determin|fetch|get|load|connect|complet|obtain|retriev|summari|describ|decod)\w*.*",
            rf"no (valid |clear |suitable )?{_WHAT}( \w+){{0,3}}[.!]?",
            r"(there (is|are|was|were|seems? to be|appears? to be) )?no (single |clear |consistent |obvious |discernible |common |identifiable |meaningful |"
            r"coherent |apparent |specific |evident )+(pattern|theme|meaning|concept|topic|feature|connection|interpretation)s?\b.{0,60}",
            r"(the )?(text|activations?|examples?|feature|neuron|latent|data) (is|are|does|do|show|shows) no\w* (interpretable|clear|enough|discernible|coherent)\b.*",
            r"([\w.]*error|[\w.]*exception|traceback|fatal|warning)\s*([:\[(]|$|!|\d{3}\b|occurred\b|while\b|code\b|parsing\b|generating\b|response\b).*",
            r"(an? |unknown |internal |api |server |network |parse |parsing |timeout |http |json |unexpected )+(error|exception)s?\b( \w+){0,4}[.!]?",
            r"(http(s|error)?[ :/]*(\d\.\d)?\s*)?[45]\d\d[ :,-]+(client |server )?(error|too many|bad|unauthori[sz]ed|forbidden|not found|internal|service|gateway|payment|request).*",
            r"rate.?limit(s|ed|ing)?( (was |is |has been )?(exceeded|reached|error|hit))?\b[^a-z]*(please.*|try.*|retry.*)?",
            r"(the )?(request|api call|call|connection|server|model)? ?(timed? ?out|timeout|was refused|refused|reset by peer|aborted|overloaded)\b.{0,40}",
            r"too many requests\b.*|(insufficient|exceeded)\W+(your )?(current )?quota.*|service unavailable\b.*|bad gateway\b.*|internal server error\b.*",
            r"(i.?m|i am|we.?re|we are) (very |really |so |terribly )?(sorry|unable|not able|an ai|a (large )?language model)\b.*",
            r"(sorry|apologies|my apologies|i apologi[sz]e|unfortunately|regrettably)\s*[,.!:;—-]?\s*(but |for (the|any) |i\b|we\b|there (is|are)|no\b|the (text|feature|examples)).*",
            r"i (can.?t|cannot|can not|could not|couldn.?t|won.?t|will not|do not|don.?t|am unable|was unable|need more|would need)\b.*",
            r"as an? (ai|artificial|large language|language)\b.*",
            r"(please |kindly )(provide|try again|give|share|supply|specify)\b.*",
            r"[\[<{(]+\s*(your |the |insert |an? )*(explanation|description|label|gloss|answer|text|placeholder|concept)s?( here| goes here)?\s*[\]>})]+[.!]?",
            r"(n/?a|nan|none|null|nil|undefined|unknown|unclear|todo|tbd|failed|failure|placeholder|empty|blank|missing|pending|skipped|invalid|inconclusive|uninterpretable|"
            r"not (found|available|applicable|interpretable|clear|sure|parsed|provided)|feature not found|i don.?t know)[.!?]?",
            r"(http|status|code)[ :]*[45]\d\d[.!]?|#(n/?a|ref!|value!|name\?|div/0!|num!|null!|spill!)|\[object \w+\]",
            r"(not enough|insufficient|too little|no) (information|data|context|evidence|activations?|examples?)\b.{0,60}|no (top )?activations?( found)?[.!]?",
            r"(this |the )?(dead|inactive) (feature|latent|neuron|unit)[.!]?|(this |the )(feature|latent|neuron|unit) (is (dead|inactive)|never (fires|activates))[.!]?",
            r"(the |this )?(model|explainer|api|server|request|judge) (failed|did not|could not|couldn.?t|was unable)\b.*|content.?filter(ed)?\b.{0,40}|max.?tokens",
            r"[<\[({|]*\s*/?(s|pad|unk|bos|eos|cls|sep|mask|endoftext|end_of_text|begin_of_text|blank|empty|error|failed|null|none)\s*[|>\])}]+",
            r"<(!doctype|html|head|body)\b.*|\{\s*\"?(error|detail|message|status)\"?\s*:.*",
        )
    ),
    re.IGNORECASE | re.DOTALL,
)


def without_thought(text: str) -> str:
    """A text without what a model thought aloud before it, and without characters that no one sees at its ends."""
    return _THOUGHT.sub("", text).strip().strip("\u200b\u2060\ufeff")


def is_failure(text: str) -> bool:
    """Whether a text that is not blank says nothing about a feature: invisible, marks alone, a message, a refusal."""
    seen = _INVISIBLE.sub("", text).strip()
    if _NOTHING.fullmatch(seen) or _OPEN_THOUGHT.match(seen):
        return True
    return _FAILURE.fullmatch(seen.strip("\"'`*_ ").replace("\u2019", "'")) is not None
