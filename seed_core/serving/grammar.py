"""Which tokens may come next, written for engines as a grammar over token ids.

It says what `llm.sampling.PictureGrammar` says, except where a picture no longer fits: a grammar
does not count the tokens of a reply.

Source: the EBNF of xgrammar >= 0.1.33, which vLLM and SGLang use.
"""

from __future__ import annotations

from ..llm.sampling import ImageTokens


def picture_grammar(
    tokens: ImageTokens,
    eos: int,  # the token that ends a text; the engine allows it wherever the grammar may end
    has_pictures: bool = True,  # whether a picture may be begun
    is_inside: bool = False,  # whether the prompt ends with the marker that opens a picture
) -> str:
    """Return the EBNF of a reply: text, and pictures that are whole."""
    codes = ",".join(map(str, range(tokens.first_code, tokens.first_code + tokens.codebook_size)))
    more = "(pic | text)*" if has_pictures else "text*"
    rest = f"code{{{tokens.per_image}}} Token({tokens.end})"
    rules = {
        "root": f"{rest} {more}" if is_inside else more,
        "pic": f"Token({tokens.begin}) {rest}",
        "code": f"Token({codes})",
        "text": f"ExcludeToken({codes},{tokens.begin},{tokens.end},{eos})",
    }
    used = ["root", "text"]
    used += ["pic"] * has_pictures + ["code"] * (has_pictures or is_inside)
    return "\n".join(f"{name} ::= {rule}" for name, rule in rules.items() if name in used)
