"""Patterns of module names: Python's own answers, in steps that are bounded."""

import random
import re

import pytest

from seed_core.models.name_patterns import NamePattern, PatternError, PatternTable

NAMES = [
    *(
        f"model.layers.{layer}.{part}"
        for layer in (0, 1, 7, 10, 31)
        for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "input_layernorm")
    ),
    *("model.embed_tokens", "lm_head", "model.norm", "q_proj", "a.b", "x-1"),
]


def pythons(text, name):
    """What peft does with a pattern."""
    return re.match(rf"(.*\.)?({text})$", name) is not None


@pytest.mark.parametrize(
    "text",
    [
        *("q_proj", "proj", "self_attn.q_proj", r"layers\.1\.self_attn\.q_proj", "model.norm"),
        *("layers.[0-9].self_attn.q_proj", "(0|1)", "(0|1).mlp.up_proj", ".*", ".+proj", ""),
        *("^model.layers.1.self_attn.q_proj", "^layers.1.mlp", "^lm_head$", "lm_head$", "^", "$"),
        *(r"layers\.\d+\.mlp\..*", r"layers\.\d{2}\..*", r"layers.(?:7|3\d?).self_attn.[qk]_proj"),
        *("[^.]*_proj", r"[\w-]+", "[a-z_]*?", "(a|b|)", "(?:.*mlp)?.up_proj", "q_proj|lm_head"),
        *("^q_proj|k_proj", "q_proj$|^lm_head", "[|]|a", r"\(|\)|norm"),
        *(r"\S+\W\d\D+", "[]x]-1", "[-x]-?1", "a.{1,3}", "layers.[0-9]{1,2}.mlp.*"),
        *(".*layers.*1.*", "(.*)", "((((q))))_proj", "model.(embed_tokens|norm)"),
    ],
)
def test_a_pattern_means_what_peft_makes_of_it(text):
    pattern = NamePattern(text, after_dot=True)
    assert [pattern.matches(name) for name in NAMES] == [pythons(text, name) for name in NAMES]


def random_pattern(chance, depth=0):
    """Of the forms that are read; letters are few, so that some match."""
    kind = chance.random()
    if kind < 0.5 or depth > 3:
        return chance.choice(
            [*"aab.", r"\.", ".", r"\d", "1", "[ab]", "[^a]", "[a-c1]", r"[\d.]", r"\w"]
        )
    if kind < 0.7:
        return "".join(random_pattern(chance, depth + 1) for _ in range(chance.randint(1, 4)))
    if kind < 0.85:
        inside = "|".join(random_pattern(chance, depth + 1) for _ in range(chance.randint(1, 3)))
        return f"({'?:' * chance.randrange(2)}{inside})"
    atom = chance.choice(["a", r"\.", "[ab]", ".", "(ab|b)", "(a|1.)", r"\d"])
    counts = ["*", "+", "?", "*?", "+?"] + ["{2}", "{1,3}", "{0,2}", "{1,}", "{,2}"] * (atom != "a")
    return atom + chance.choice(counts)


def test_thousands_of_random_patterns_mean_what_peft_makes_of_them():
    chance, read, found = random.Random(1), 0, 0
    for _ in range(6000):
        text = random_pattern(chance)
        text = chance.choice(["", "", "^"]) + text + chance.choice(["", "", "$"])
        try:
            pattern = NamePattern(text, after_dot=True)
        except PatternError:
            continue
        read += 1
        for _ in range(8):
            name = "".join(chance.choice("ab1..") for _ in range(chance.randint(0, 9)))
            assert pattern.matches(name) == pythons(text, name), (text, name)
            found += pattern.matches(name)
    assert read > 4000
    assert found > 3000


def test_without_enclosing_names_the_whole_name_has_to_match():
    for text in ("q_proj", ".*q_proj", "model.*", "^lm_head", "a.b|lm_head"):
        pattern = NamePattern(text)
        for name in NAMES:
            assert pattern.matches(name) == (re.fullmatch(text, name) is not None)


@pytest.mark.parametrize(
    "text",
    [
        *("(", ")", "a)", "(?", "(?i)q", "(?=q)", "(?!q)q", "(?P<n>q)", r"(q)\1", r"\bq", r"q\Z"),
        *("\\", "*", "a**", "a*+", "(a*)*", "(a+b)+", "((a|b?)c)*", "(a|b){2}", ".{a}", ".{3,1}"),
        *(".{", ".{,}", ".{9999}", "[", "[a", "[z-a]", "a^b", "(^a)", "a$b", "(a$)", "{2}", "]"),
        *("a" * 2000, "a b", "a\nb"),
    ],
)
def test_other_forms_are_refused_by_what_they_say(text):
    with pytest.raises(PatternError) as caught:
        NamePattern(text)
    assert repr(text)[1:20] in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [".*" * 11, "(.*.*.*)" * 10, "(a|a|aa)?" * 50, ".?" * 400, "(.|.)" * 20, "a{0,9}" * 9],
)
def test_what_could_fit_in_too_many_ways_is_refused(text):
    """Python's matcher would try all of them."""
    with pytest.raises(PatternError, match="too much work"):
        NamePattern(text, after_dot=True)


def test_the_first_pattern_that_matches_counts():
    table = PatternTable({"k_proj": 1, "layers.1.*": 2, "q_proj": 3})
    assert table.find("model.layers.1.self_attn.k_proj") == "k_proj"
    assert table.find("model.layers.1.self_attn.q_proj") == "layers.1.*"
    assert table.find("model.layers.2.self_attn.q_proj") == "q_proj"
    assert table.find("lm_head") is None


def test_patterns_without_number_are_refused_and_so_is_much_work_together():
    with pytest.raises(PatternError, match="1,001 patterns"):
        PatternTable([str(number) for number in range(1001)])
    with pytest.raises(PatternError, match="too much work"):
        PatternTable([f".*a.*b.*{number}" for number in range(3)])
