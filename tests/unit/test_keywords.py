"""Cleaning of a model's keywords: nothing good is lost, nothing is kept twice."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phototagger import keywords
from phototagger.keywords import Rules, clean
from phototagger.labels import Label, load_pack


def kept(words: Iterable[str], **rules: Any) -> list[str]:
    return [k.keyword for k in clean(words, Rules(**{"max_keywords": 100, **rules})).keywords]


def why(words: Iterable[str], **rules: Any) -> dict[str, str]:
    return dict(clean(words, Rules(**{"max_keywords": 100, **rules})).dropped)


# ----------------------------------------------- what rules with suffixes and substrings broke

SINGULAR = {
    "horses": "horse",
    "trees": "tree",
    "car": "car",
    "sky": "sky",
    "skies": "sky",
    "grass": "grass",
    "dress": "dress",
    "roses": "rose",
    "shoes": "shoe",
    "movies": "movie",
    "leaves": "leaf",
    "bridges": "bridge",
    "glass": "glass",
    "bus": "bus",
    "buses": "bus",
    "lens": "lens",
    "lenses": "lens",
    "boxes": "box",
    "churches": "church",
    "ladies": "lady",
    "wolves": "wolf",
    "knives": "knife",
    "children": "child",
    "women": "woman",
    "fishermen": "fisherman",
    "canvas": "canvas",
    "series": "series",
    "species": "species",
    "news": "news",
    "jeans": "jeans",
    "scissors": "scissors",
    "trousers": "trousers",
    "gas": "gas",
    "circus": "circus",
    "octopus": "octopus",
    "moss": "moss",
    "tennis": "tennis",
    "paris": "paris",
    "sunglasses": "sunglasses",
    "swimming": "swimming",
    "painting": "painting",
    "paintings": "painting",
    "red cars": "red car",
    "wedding dresses": "wedding dress",
    "fall leaves": "fall leaf",
    "black and white": "black and white",
    "rock and roll": "rock and roll",
}


@pytest.mark.parametrize(("word", "base"), SINGULAR.items())
def test_singular(word: str, base: str) -> None:
    assert kept([word], plural="singular") == [base]
    assert kept([word], plural="merge") == kept([word], plural="keep") == [word]
    assert kept([word, base], plural="merge") == [word]
    assert kept([base, word], plural="merge") == [base]
    assert kept([word, base], plural="keep") == list(dict.fromkeys([word, base]))


def test_a_keyword_within_another_stays() -> None:
    words = ["red car", "cartoon character", "car", "skyline", "sky", "blue car", "car park"]
    for plural in ("keep", "merge", "singular"):
        assert kept(words, plural=plural) == words


def test_things_that_only_look_like_plurals_stay_apart() -> None:
    words = ["glass", "glasses", "wood", "woods", "paint", "painting", "swim", "swimming"]
    assert kept(words) == words


def test_nothing_is_split_at_and() -> None:
    words = ["black and white", "rock and roll", "salt and pepper", "rock", "black"]
    assert kept(words) == words


def test_other_languages() -> None:
    assert kept(["Bäume", "Baum", "Hunde"], language="de") == ["bäume", "hunde"]
    assert kept(["Bäume"], language="de", plural="singular", lowercase=False) == ["Baum"]
    assert kept(["coches rojos", "coche rojo"], language="es") == ["coches rojos"]
    assert kept(["chevaux", "cheval"], language="fr", plural="singular") == ["cheval"]
    assert kept(["犬", "猫"], language="ja", plural="singular") == ["犬", "猫"]


# -------------------------------------------------------------------------------------- cleaning


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["dog, cat; bird"], ["dog", "cat", "bird"]),
        (["dog|cat", "a\nb"], ["dog", "cat", "a", "b"]),
        (["犬、猫，鳥"], ["犬", "猫", "鳥"]),
        (["1. dog", "2) cat", "- bird", "#fish", "• cow"], ["dog", "cat", "bird", "fish", "cow"]),
        (['"dog"', "'cat'", "“bird”", "fish.", "**cow**"], ["dog", "cat", "bird", "fish", "cow"]),
        (["red_car", "  blue   car "], ["red car", "blue car"]),
        (["do\x00g", "ca\x1bt"], ["do g", "ca t"]),
        (["Dog", "DOG", "dog"], ["dog"]),
        (["cafe\u0301", "café"], ["café"]),
        (["Straße", "STRASSE"], ["straße"]),
        (["", " ", "...", "-"], []),
        (["t-shirt", "o'clock", "crane (bird)", "24-hour clock"], None),
        (["747", "2024", "boeing 747"], ["boeing 747"]),
    ],
)
def test_spelling(said: list[str], words: list[str] | None) -> None:
    assert kept(said) == (said if words is None else words)


def test_case_is_kept_on_request() -> None:
    assert kept(["Eiffel Tower", "BMW", "eiffel tower"], lowercase=False) == ["Eiffel Tower", "BMW"]
    assert kept(["Horses", "USAS"], lowercase=False, plural="singular") == ["Horse", "USAS"]


def test_the_limit_and_the_order() -> None:
    words = [f"word {chr(97 + n)}" for n in range(20)]
    result = clean(words, Rules(max_keywords=15))
    assert [k.keyword for k in result.keywords] == words[:15]
    assert result.dropped == [(word, "more than 15 keywords") for word in words[15:]]


def test_an_endless_answer_is_not_worked_through() -> None:
    assert len(clean([f"a{n}" for n in range(100_000)], Rules(max_keywords=10)).dropped) < 1000


def test_the_log_says_why() -> None:
    words = ["dog", "dogs", "photo", "unknown person", "123", "a b c d e", "x" * 70, "one"]
    assert why(words, max_keywords=1) == {
        "dogs": "same as dog",
        "photo": "too generic",
        "unknown person": "banned: unknown",
        "123": "no letters in it",
        "a b c d e": "more than 4 words",
        "x" * 70: "longer than 64 bytes",
        "one": "more than 1 keywords",
    }


def test_banned_and_generic_words_are_whole_words() -> None:
    assert kept(["photo", "Light", "image", "colours", "Hintergrund"]) == []
    words = ["photo booth", "traffic light", "lighthouse", "unknowns", "colourful", "photographer"]
    assert kept(words, plural="keep") == words


def test_words_in_one_keyword() -> None:
    assert kept(["statue of liberty island ferry"], max_words=5) != []
    assert kept(["old stone bridge"], max_words=2) == []


# ------------------------------------------------------------------------------------ vocabulary


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> tuple[Label, ...]:
    file = tmp_path_factory.mktemp("pack") / "mine.txt"
    file.write_text(
        "Animals\n\tDog\n\t\t{hound}\n\t\t{canine}\n\tHorse\n\tcrane\n"
        "Machines\n\tcrane\n\tAutomobile\n\t\t{car}\n\t\t{dog cart}\n"
        "photo\n\t{image}\n[workflow]\n",
        "utf-8",
    )
    return load_pack(file).labels


def test_keywords_are_mapped_by_name_synonym_and_form(pack: tuple[Label, ...]) -> None:
    rules = Rules(100, vocabulary=pack)
    result = clean(["HOUND", "horses", "cars", "tree", "dog", "canine", "workflow"], rules)
    assert [(k.keyword, k.path, k.synonyms) for k in result.keywords] == [
        ("Dog", ("Animals", "Dog"), ("hound", "canine")),
        ("Horse", ("Animals", "Horse"), ()),
        ("Automobile", ("Machines", "Automobile"), ("car", "dog cart")),
        ("tree", ("tree",), ()),
    ]
    assert result.mapped == [("HOUND", "Dog"), ("horses", "Horse"), ("cars", "Automobile")]
    assert result.dropped == [("canine", "same as Dog"), ("workflow", "workflow is not exported")]


def test_what_the_user_has_listed_is_neither_generic_nor_too_long(pack: tuple[Label, ...]) -> None:
    assert kept(["image", "picture"], vocabulary=pack) == ["photo"]


def test_strict_leaves_nothing_outside(pack: tuple[Label, ...]) -> None:
    words = ["hound", "tree", "horses", "red car", "a dog", "crane"]
    result = clean(words, Rules(100, vocabulary=pack, strict=True))
    assert [k.keyword for k in result.keywords] == ["Dog", "Horse", "crane"]
    assert dict(result.dropped) == dict.fromkeys(
        ["tree", "red car", "a dog"], "not in the vocabulary"
    )


def test_a_name_in_several_places_has_no_path(pack: tuple[Label, ...]) -> None:
    (crane,) = clean(["cranes"], Rules(100, vocabulary=pack)).keywords
    assert crane.path == ("crane",)
    (crane,) = clean(["Crane (Machines)"], Rules(100, vocabulary=pack)).keywords
    assert crane.path == ("Machines", "crane")


def test_an_empty_vocabulary_maps_nothing() -> None:
    assert kept(["dog"], vocabulary=()) == ["dog"]
    assert kept(["dog"], vocabulary=(), strict=True) == []
    assert kept(["dog"], vocabulary=None, strict=True) == ["dog"]


# ------------------------------------------------------------------------------------ properties

WORDS = st.lists(
    st.one_of(
        st.text(max_size=20),
        st.sampled_from(
            [
                *SINGULAR,
                "hound",
                "Cars",
                "crane",
                "photo",
                "1. dog",
                "a, b; c",
                "Straßen",
                "İs",
                "ﬁn",
                *("(x)", '"q"', "red|blue", "don't", "cranes", "Dog", "# - dog", "Bäume"),
            ]
        ),
    ),
    max_size=12,
)
RULES = st.fixed_dictionaries(
    {
        "max_keywords": st.integers(1, 10),
        "lowercase": st.booleans(),
        "plural": st.sampled_from(["keep", "merge", "singular"]),
        "language": st.sampled_from(["en", "de", "ja"]),
        "strict": st.booleans(),
    }
)


@settings(max_examples=150, deadline=None)
@given(WORDS, RULES, st.booleans())
def test_properties(
    pack: tuple[Label, ...], words: list[str], values: dict[str, Any], mapped: bool
) -> None:
    rules = Rules(**values, vocabulary=pack if mapped else None)
    result = clean(words, rules)
    found = [k.keyword for k in result.keywords]
    assert len(found) <= rules.max_keywords
    assert len({keywords.fold(word) for word in found}) == len(found)
    assert [k.keyword for k in clean(found, rules).keywords] == found
    for word in found:
        assert word.strip() == word != ""
        assert not set(word) & set(",;|\n\t\x00")
        assert len(word.encode()) <= 64
    if mapped and rules.strict:
        assert {k.keyword for k in result.keywords} <= {label.keyword for label in pack}


@pytest.mark.parametrize("name", ["banned", "generic", "plurals.en"])
def test_word_files_have_no_doubles(name: str) -> None:
    path = Path(keywords.WORDS / f"{name}.txt")
    lines = [line for line in path.read_text("utf-8").splitlines() if line and line[0] != "#"]
    assert sorted({line for line in lines if lines.count(line) > 1}) == []
