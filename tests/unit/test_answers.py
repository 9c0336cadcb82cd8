"""What is read out of a reply, and which answers are not worth keeping."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phototagger import answers, prompts

TEXT = prompts.load_profile("default").prompts["caption"].schema
LIST = prompts.limit(prompts.load_profile("default").prompts["keywords"], 5).schema


# -------------------------------------------------------------------------------------- parse


@pytest.mark.parametrize(
    "reply",
    [
        '{"caption": "A dog runs."}',
        '\ufeff {"caption": "A dog runs."}\n',
        '```json\n{"caption": "A dog runs."}\n```',
        'Sure, here it is:\n```\n{"caption": "A dog runs."}\n```\nAnything else?',
        'The set {dog} says: {"caption": "A dog runs."} {"caption": "second"}',
        '{{"caption": "A dog runs."}}',
        '{"Caption": " A  dog\\nruns. "}',
        '{"caption": "\\"A dog runs.\\""}',
        '{"caption": "“A dog runs.”", "mood": "glad"}',
        '{"caption": "A dog\nruns."}',
        '"A dog runs."',
    ],
)
def test_a_text_is_found_in_what_models_put_around_it(reply: str) -> None:
    assert answers.parse(reply, "caption", TEXT) == "A dog runs."


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("A dog runs.", "no JSON"),
        ("<html><body>502 Bad Gateway</body></html>", "no JSON"),
        ('{"caption": "A dog ru', "incomplete"),
        ('```js\n{"caption": "A do', "incomplete"),
        ('{"caption": 5}', "not of type"),
        ('{"caption": null}', "not of type"),
        ('{"caption": ["A dog"]}', "not of type"),
        ('{"text": "A dog"}', "no 'caption' (its keys: text)"),
        ("{}", "its keys: none"),
        ("[1, 2]", "not an object"),
        ("null", "not an object"),
        ("[" * 100_000, "incomplete"),
        ("9" * 5_000, "no JSON"),
    ],
)
def test_everything_else_is_invalid_and_says_why(reply: str, says: str) -> None:
    with pytest.raises(answers.Invalid, match=re.escape(says)) as caught:
        answers.parse(reply, "caption", TEXT)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ('{"keywords": ["dog", "red ball"]}', ["dog", "red ball"]),
        ('["dog", "red ball"]', ["dog", "red ball"]),
        ('Keywords: ["dog", "red ball"].', ["dog", "red ball"]),
        ('{"keywords": ["dog", "", "  "]}', ["dog"]),
        ('{"keywords": "dog, red ball"}', ["dog", "red ball"]),
        ('{"keywords": ["a", "b", "c", "d", "e", "f", "g"]}', ["a", "b", "c", "d", "e", "f", "g"]),
        (json.dumps({"keywords": ["dog", "x" * 80]}), ["dog", "x" * 80]),
    ],
)
def test_a_list_is_found_and_may_be_longer_than_asked_for(reply: str, words: list[str]) -> None:
    assert answers.parse(reply, "keywords", LIST) == words


@pytest.mark.parametrize("reply", ['{"keywords": [1, 2]}', '{"keywords": [{"name": "dog"}]}'])
def test_a_list_of_other_things_is_invalid(reply: str) -> None:
    with pytest.raises(answers.Invalid, match="not of type 'string'"):
        answers.parse(reply, "keywords", LIST)


def test_an_empty_value_is_for_the_judge_to_name() -> None:
    assert answers.parse('{"caption": ""}', "caption", TEXT) == ""
    assert answers.parse('{"keywords": []}', "keywords", LIST) == []
    assert judge("caption", "") == judge("keywords", []) == "empty"


def test_a_long_text_is_cut_after_a_sentence() -> None:
    text = "A dog runs along the beach. Behind it two children throw a ball. " + "And so on " * 30
    reply = json.dumps({"caption": text})
    assert (
        answers.parse(reply, "caption", TEXT, 70)
        == "A dog runs along the beach. Behind it two children throw a ball."
    )
    assert len(answers.parse(reply, "caption", TEXT)) <= 300
    assert answers.shorten("one two three four", 12) == "one two…"
    assert answers.shorten("犬が走る。猫が眠る。鳥が飛ぶ。", 12) == "犬が走る。猫が眠る。"


@given(st.text(max_size=300), st.integers(5, 100))
def test_texts_are_plain_and_fit(text: str, limit: int) -> None:
    tidied = answers.tidy(text)
    assert answers.tidy(tidied) == tidied
    assert not any(ord(c) < 32 for c in tidied)
    assert len(answers.shorten(tidied, limit)) <= limit


@given(st.text(max_size=200))
def test_no_reply_breaks_the_reader_or_the_judge(text: str) -> None:
    for field, schema in (("caption", TEXT), ("keywords", LIST)):
        try:
            value = answers.parse(text, field, schema)
        except answers.Invalid:
            continue
        judge(field, value)


# -------------------------------------------------------------------------------------- judge


def judge(field: str, value: str | list[str], language: str = "en") -> str | None:
    return answers.judge(field, value, language=language, reject=answers.DETECTORS)


GOOD = [
    ("caption", "en", "A brown dog leaps over a low wall beside the sea."),
    ("caption", "en", "Two women in raincoats wait at a bus stop."),
    ("caption", "en", "Route 66 sign at dusk."),
    ("caption", "en", "No. 42 crosses the line first."),
    ("caption", "en", "Boats."),
    ("caption", "en", "A framed photo of a soldier stands on a piano."),
    ("caption", "en", "A photograph of the moon hangs above the desk."),
    ("caption", "en", 'A hand-painted sign reads "I\'m sorry, we are closed".'),
    ("caption", "en", "A girl holds a card that says “I can’t swim”."),
    ("caption", "en", "Piñatas and papel picado over Calle San Miguel, Oaxaca"),
    ("caption", "en", "Machu Picchu, Cusco, Perú"),
    ("caption", "en", "Schloss Neuschwanstein above Hohenschwangau in October fog."),
    ("caption", "en", "The Place de la Concorde and the Champs-Élysées from the Tour Eiffel"),
    ("caption", "en", 'A shop window in Kyoto with the sign "京都のお茶".'),
    ("caption", "en", "Row after row after row of vines climbs the hill."),
    ("caption", "en", "New York, New York: neon over a wet street."),
    ("caption", "en", "Unknown Pleasures poster on a brick wall"),
    ("caption", "en", "In the image-maker's workshop a man carves a wooden saint."),
    ("caption", "en", "Sure-footed goats cross a scree slope."),
    ("caption", "en", "Error messages fill three screens in a control room."),
    ("caption", "en", "3 kayaks, 12 paddles, 1 dog."),
    ("caption", "en", "A cat. A dog. A parrot. A quiet kitchen."),
    ("caption", "en", "Sorry-looking sunflowers droop in a dry field."),
    ("caption", "de", "Ein Hund springt über eine niedrige Mauer am Meer."),
    ("caption", "de", "Vor dem Rathaus stehen zwei Frauen mit Fahrrädern im Regen."),
    ("caption", "de", "Times Square bei Nacht, Yellow Cabs und Broadway-Reklame"),
    ("caption", "fr", "Un chien brun saute par-dessus un muret au bord de la mer."),
    ("caption", "es", "Un perro marrón salta un muro bajo junto al mar."),
    ("caption", "it", "Un cane marrone salta un muretto vicino al mare."),
    ("caption", "pt", "Um cão castanho salta um muro baixo à beira do mar."),
    ("caption", "nl", "Een bruine hond springt over een lage muur aan zee."),
    ("caption", "pl", "Brązowy pies przeskakuje niski mur nad brzegiem morza."),
    ("caption", "sv", "En brun hund hoppar över en låg mur vid havet."),
    ("caption", "nb", "En brun hund hopper over en lav mur ved sjøen i solnedgang."),
    ("caption", "da", "En brun hund springer over en lav mur ved havet i solnedgang."),
    ("caption", "ru", "Коричневая собака прыгает через низкую стену у моря."),
    ("caption", "uk", "Коричневий собака стрибає через низьку стіну біля моря."),
    ("caption", "ja", "茶色い犬が海辺の低い塀を飛び越えている。"),
    ("caption", "zh", "一只棕色的狗跳过海边的矮墙，远处有两艘帆船。"),
    ("caption", "ko", "갈색 개 한 마리가 바닷가의 낮은 담을 뛰어넘고 있다."),
    ("caption", "ar", "كلب بني يقفز فوق جدار منخفض بجانب البحر عند الغروب."),
    ("caption", "tr", "Kahverengi bir köpek deniz kenarındaki alçak duvarın üzerinden atlıyor."),
    ("caption", "fi", "Ruskea koira hyppää matalan muurin yli meren rannalla."),
    ("caption", "la", "Canis fuscus murum humilem iuxta mare transilit et gaudet."),
    (
        "description",
        "en",
        "A brown dog clears a low stone wall, ears flying. Behind the wall a pebble beach runs "
        "down to a calm sea with two sailing boats near the horizon. Low evening sun from the left "
        "turns the stones orange and leaves long blue shadows.",
    ),
    (
        "description",
        "en",
        "Rows of red tulips, yellow tulips and white tulips stretch to a line of poplars. The red "
        "tulips stand in front, the yellow tulips in the middle and the white tulips at the back, "
        "each in a strip of its own. Three people in yellow jackets bend over the red tulips. "
        "Above them the sky is grey, and a strip of light lies on the poplars. A canal on the "
        "right reflects the grey sky, the poplars and one corner of a red barn.",
    ),
    (
        "description",
        "en",
        "A chalkboard in front of a café reads \"Soupe à l'oignon, croque-monsieur, tarte aux "
        'pommes, café crème". Beside it stand two wicker chairs and a round table with an empty '
        "glass.",
    ),
    (
        "description",
        "de",
        "Ein brauner Hund setzt mit fliegenden Ohren über eine niedrige Steinmauer. Dahinter fällt "
        "ein Kiesstrand zum ruhigen Meer ab, am Horizont stehen zwei Segelboote. Die tiefe Sonne "
        "färbt die Steine orange und wirft lange Schatten.",
    ),
    (
        "description",
        "ja",
        "茶色い犬が耳をなびかせながら低い石塀を飛び越えている。塀の向こうには小石の浜が穏やかな海"
        "まで続き、水平線の近くに二艘の帆船が見える。左からの夕日が石をオレンジ色に染めている。",
    ),
    ("keywords", "en", ["dog", "stone wall", "sea", "sailing boat", "sunset"]),
    ("keywords", "en", ["dog"]),
    ("keywords", "en", ["747", "airport", "runway", "fog"]),
    ("keywords", "en", ["red car", "blue car", "green car", "car park", "car", "cartoon", "sky"]),
    ("keywords", "en", ["text", "string", "violin", "bow", "keyboard"]),
    ("keywords", "en", ["pasta", "spaghetti alla carbonara", "parmigiano", "trattoria", "Roma"]),
    (
        "keywords",
        "en",
        ["Sagrada Família", "Barcelona", "Gaudí", "Catalunya", "basilica"],
    ),
    (
        "keywords",
        "en",
        ["sushi", "nigiri", "maki", "sashimi", "wasabi", "edamame", "ramen"],
    ),
    ("keywords", "en", ["unknown soldier", "memorial", "flame", "wreath"]),
    (
        "keywords",
        "en",
        [
            "tree",
            "oak",
            "bark",
            "moss",
            "leaf",
            "acorn",
            "squirrel",
            "root",
            "trunk",
            "branch",
            "fern",
            "path",
            "fog",
            "autumn",
        ],
    ),
    ("keywords", "de", ["Hund", "Mauer", "Meer", "Segelboot", "Sonnenuntergang", "Kiesstrand"]),
    (
        "keywords",
        "de",
        [
            "Skateboard",
            "Snowboard",
            "Jeans",
            "T-Shirt",
            "Sneaker",
            "Smartphone",
            "Laptop",
            "Hotdog",
        ],
    ),
    ("keywords", "fr", ["chien", "muret", "mer", "voilier", "coucher de soleil", "plage"]),
    ("keywords", "ja", ["犬", "石塀", "海", "帆船", "夕日"]),
    ("keywords", "es", ["perro", "muro de piedra", "mar", "velero", "puesta de sol", "playa"]),
]

ENGLISH = [
    *("brown dog", "stone wall", "calm sea", "sailing boat", "evening light", "pebble beach"),
    *("long shadows", "horizon", "two boats", "summer evening"),
]

BAD = [
    ("empty", "caption", "en", ""),
    ("empty", "caption", "en", "..."),
    ("empty", "caption", "en", "N/A"),
    ("empty", "keywords", "en", []),
    ("empty", "keywords", "en", ["", "-", "none"]),
    ("digits", "caption", "en", "1234567"),
    ("digits", "description", "en", "1. 2. 3. 4. 5."),
    ("digits", "keywords", "en", ["1", "2", "3", "4"]),
    ("digits", "keywords", "en", ["12", "7", "dog"]),
    ("refusal", "caption", "en", "I'm sorry, but I can't help with that."),
    ("refusal", "caption", "en", "I’m sorry, I cannot identify people in images."),
    ("refusal", "caption", "en", "As an AI language model, I am unable to see pictures."),
    ("refusal", "caption", "en", "Unable to determine the content."),
    ("refusal", "description", "en", "It seems you haven't provided an image. Please upload one."),
    ("refusal", "keywords", "en", ["I cannot identify the people in this picture."]),
    ("refusal", "caption", "de", "Es tut mir leid, aber ich kann dieses Bild nicht beschreiben."),
    ("refusal", "caption", "fr", "Je suis désolé, mais je ne peux pas décrire cette image."),
    ("refusal", "caption", "es", "Lo siento, pero no puedo ayudar con eso."),
    ("refusal", "caption", "zh", "抱歉，我无法识别图片中的人物。"),
    ("refusal", "caption", "ja", "申し訳ありませんが、この画像を説明できません。"),
    ("refusal", "caption", "ru", "К сожалению, я не могу описать это изображение."),
    ("meta", "caption", "en", "This image shows a brown dog on a wall."),
    ("meta", "caption", "en", "the photo depicts two women at a bus stop"),
    ("meta", "caption", "en", '"In this picture, a dog jumps."'),
    ("meta", "caption", "en", "**Caption:** A dog jumps."),
    ("meta", "caption", "en", "Here is a caption for the photo: a dog jumps."),
    ("meta", "caption", "en", "Sure! A dog jumps over a wall."),
    ("meta", "description", "en", "We can see a dog that jumps over a wall."),
    ("meta", "description", "en", "A dog jumps over a wall. Let me know if you need more details!"),
    ("meta", "caption", "en", "string"),
    ("meta", "keywords", "en", ["keyword1", "keyword2"]),
    ("meta", "keywords", "en", ["dog", "this image shows a dog on a wall"]),
    ("meta", "caption", "de", "Das Bild zeigt einen Hund auf einer Mauer."),
    ("meta", "caption", "fr", "Cette image montre un chien sur un mur."),
    ("meta", "caption", "es", "La imagen muestra un perro sobre un muro."),
    ("meta", "caption", "pt", "Na imagem, um cão salta um muro."),
    ("meta", "caption", "zh", "这张图片展示了一只狗。"),
    ("meta", "caption", "ja", "この写真には犬が写っています。"),
    ("meta", "caption", "ru", "На фото собака прыгает через стену."),
    ("loop", "caption", "en", "A dog dog dog dog dog dog"),
    ("loop", "caption", "en", "aaaaaaaaaaaaaaaaaaaaaaaa"),
    ("loop", "caption", "en", "A wall!!!!!!!!!!!!!!!!!!!!"),
    ("loop", "caption", "en", "a dog and a dog and a dog and a dog and a dog and a dog and"),
    ("loop", "description", "en", "The dog jumps over it. " * 3),
    (
        "loop",
        "description",
        "en",
        "A dog stands on a wall. The sea is calm. A dog stands on a wall. The sea is calm.",
    ),
    ("loop", "description", "en", "with a red hat, a blue hat, " * 12),
    (
        "loop",
        "description",
        "ja",
        "犬が走っている" * 5,
    ),
    ("loop", "keywords", "en", ["dog", "dog", "dog", "dog", "cat", "dog", "dog"]),
    ("loop", "keywords", "en", [f"tree {number}" for number in range(15)]),
    ("language", "caption", "de", "A brown dog leaps over a low wall beside the calm sea."),
    ("language", "caption", "ja", "A brown dog leaps over a low wall beside the calm sea."),
    ("language", "caption", "en", "一只棕色的狗跳过海边的矮墙，远处有两艘帆船。"),
    ("language", "caption", "en", "Ein brauner Hund springt über eine niedrige Mauer am Meer."),
    ("language", "caption", "fr", "Un perro marrón salta un muro bajo junto al mar en calma."),
    ("language", "caption", "en", "Коричневая собака прыгает через низкую стену у моря."),
    (
        "language",
        "description",
        "de",
        "A brown dog clears a low stone wall, ears flying. Behind the wall a pebble beach runs "
        "down to a calm sea with two sailing boats near the horizon.",
    ),
    (
        "language",
        "keywords",
        "ja",
        ENGLISH,
    ),
    (
        "language",
        "keywords",
        "ar",
        ENGLISH,
    ),
    (
        "language",
        "keywords",
        "en",
        ["棕色的狗", "石头墙", "平静的大海", "帆船", "晚霞", "鹅卵石海滩", "长长的影子", "地平线"],
    ),
]


def test_there_are_enough_examples() -> None:
    assert len(GOOD) >= 60
    assert len(BAD) >= 50


@pytest.mark.parametrize(("field", "language", "value"), GOOD)
def test_good_answers_pass(field: str, language: str, value: str | list[str]) -> None:
    assert judge(field, value, language) is None


@pytest.mark.parametrize(("detector", "field", "language", "value"), BAD)
def test_bad_answers_are_named(
    detector: str, field: str, language: str, value: str | list[str]
) -> None:
    assert judge(field, value, language) == detector
    others = [name for name in answers.DETECTORS if name != detector]
    found = answers.judge(field, value, language=language, reject=others)
    assert found != detector


def test_only_what_is_asked_for_is_judged() -> None:
    assert answers.judge("caption", "This image shows a dog.", language="en", reject=()) is None


def test_a_text_that_is_mixed_is_not_the_wrong_language() -> None:
    text = "Ein brauner Hund springt über die Mauer. A brown dog leaps over the wall by the sea."
    assert judge("caption", text, "en") is None
    assert judge("caption", text, "de") is None


def test_judging_is_quick() -> None:
    """Linear in the length of the answer: a loop of 32,768 tokens must not stop a run."""
    import time

    started = time.perf_counter()
    judge("description", " ".join(f"word{number}" for number in range(10_000)))
    judge("description", "a b " * 20_000)
    assert time.perf_counter() - started < 5


# -------------------------------------------------------------------------------------- repeated


def test_the_same_text_on_many_photos() -> None:
    values = {f"{n:064x}": f"A photo with number {n}." for n in range(95)}
    same = {f"{n:064x}": "A  close-up of a person." for n in range(100, 111)}
    assert answers.repeated(values | same) == same.keys()
    burst = dict.fromkeys(list(same)[:10], "A runner.")
    assert answers.repeated(values | burst) == set()


def test_a_few_photos_may_have_the_same_text() -> None:
    assert answers.repeated({str(n): "A runner." for n in range(4)}) == set()
    assert len(answers.repeated({str(n): "A runner." for n in range(5)})) == 5
    assert answers.repeated({}) == set()


@pytest.mark.parametrize("name", ["refusals", "meta"])
def test_phrases_are_distinct(name: str) -> None:
    lines = answers.read_words(name)
    assert len(lines) == len(set(lines)) > 50


def test_the_digest_of_the_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "WORDS", tmp_path)
    digests = []
    for text in ("one", "# what for\n\none  # first\n", "two"):
        (tmp_path / "meta.txt").write_text(text, "utf-8")
        answers.read_words.cache_clear()
        digests.append(answers.words_digest())
    answers.read_words.cache_clear()
    assert digests[0] == digests[1] != digests[2]
