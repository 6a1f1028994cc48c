"""BM25 finds the right document in scripts and languages of several kinds, and in the smallest corpora."""

from __future__ import annotations

import itertools

import pytest

from retrieval.search.bm25.builder import build_index
from retrieval.text.normalize import Tokenizer

#: By language: documents that differ in a few words, and a question about each.
CORPORA: dict[str, list[tuple[str, str]]] = {
    "japanese": [
        ("電気ケトルの値段は三千円です。色は赤です。", "電気ケトルの値段はいくらですか"),
        ("自転車の値段は二万円です。色は青です。", "自転車の値段はいくらですか"),
        ("望遠鏡の値段は五万円です。色は黒です。", "望遠鏡の値段はいくらですか"),
        ("羅針盤の値段は八百円です。色は白です。", "羅針盤の値段はいくらですか"),
    ],
    "chinese": [
        ("电水壶的价格是三百元，颜色是红色的。", "电水壶的价格是多少"),
        ("自行车的价格是两千元，颜色是蓝色的。", "自行车的价格是多少"),
        ("望远镜的价格是五千元，颜色是黑色的。", "望远镜的价格是多少"),
        ("指南针的价格是八十元，颜色是白色的。", "指南针的价格是多少"),
    ],
    "thai": [
        ("กาต้มน้ำราคาสามร้อยบาทสีแดง", "กาต้มน้ำราคาเท่าไร"),
        ("จักรยานราคาสองพันบาทสีน้ำเงิน", "จักรยานราคาเท่าไร"),
        ("เข็มทิศราคาแปดสิบบาทสีขาว", "เข็มทิศราคาเท่าไร"),
    ],
    "khmer": [
        ("កង់មានតម្លៃពីររយដុល្លារ", "កង់មានតម្លៃប៉ុន្មាន"),
        ("ចង្កៀងមានតម្លៃដប់ដុល្លារ", "ចង្កៀងមានតម្លៃប៉ុន្មាន"),
        ("សៀវភៅមានតម្លៃប្រាំដុល្លារ", "សៀវភៅមានតម្លៃប៉ុន្មាន"),
    ],
    "korean": [
        ("주전자의 가격은 삼만 원입니다.", "주전자의 가격은 얼마입니까"),
        ("자전거의 가격은 이십만 원입니다.", "자전거의 가격은 얼마입니까"),
        ("망원경의 가격은 오십만 원입니다.", "망원경의 가격은 얼마입니까"),
    ],
    "hindi": [
        ("दिन की कीमत एक है।", "दिन की कीमत क्या है"),
        ("दान की कीमत दस है।", "दान की कीमत क्या है"),
        ("दीन की कीमत सौ है।", "दीन की कीमत क्या है"),
        ("दूना की कीमत कम है।", "दूना की कीमत क्या है"),
    ],
    "tamil": [
        ("கல் விலை பத்து", "கல் விலை என்ன"),
        ("கால் விலை நூறு", "கால் விலை என்ன"),
        ("கோல் விலை எட்டு", "கோல் விலை என்ன"),
    ],
    "arabic": [
        ("سِعْرُ المِصْبَاحِ عشرون يورو", "ما سعر المصباح"),
        ("سِعْرُ الدَّرَّاجَةِ مئة يورو", "ما سعر الدراجه"),
        ("سِعْرُ البُوصَلَةِ ثمانية يورو", "ما سعر البوصلة"),
    ],
    "hebrew": [
        ("מְחִיר הַמְּנוֹרָה עשרים", "מחיר המנורה"),
        ("מְחִיר הָאוֹפַנַּיִם מאה", "מחיר האופנים"),
        ("מְחִיר הַמַּצְפֵּן שמונה", "מחיר המצפן"),
    ],
    "turkish": [
        ("İSTANBUL ÇOK BÜYÜK", "istanbul ne kadar büyük"),
        ("İZMİR ÇOK BÜYÜK", "izmir ne kadar büyük"),
        ("ISPARTA ÇOK BÜYÜK", "ısparta ne kadar büyük"),
        ("IĞDIR ÇOK BÜYÜK", "ığdır ne kadar büyük"),
    ],
    "greek": [
        ("Η ΤΙΜΉ ΤΗΣ ΛΆΜΠΑΣ", "η τιμή της λάμπας"),
        ("Η ΤΙΜΉ ΤΟΥ ΠΟΔΗΛΆΤΟΥ", "η τιμή του ποδηλάτου"),
        ("Η ΤΙΜΉ ΤΗΣ ΠΥΞΊΔΑΣ", "η τιμή της πυξίδας"),
    ],
    "german": [
        ("DIE STRASSE IST LANG", "wie lang ist die Straße"),
        ("DIE GRÖSSE IST KLEIN", "wie klein ist die Größe"),
        ("DIE LÖSUNG IST NEU", "wie neu ist die Lösung"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("language", CORPORA)
def test_the_right_document_is_first(language: str) -> None:
    documents, questions = zip(*CORPORA[language], strict=True)
    tokenizer = Tokenizer("turkish") if language == "turkish" else Tokenizer()
    for order in itertools.permutations(range(len(documents))):
        index = build_index([tokenizer(documents[place]) for place in order], tokenizer)
        for number, question in enumerate(questions):
            places, scores = index.search(tokenizer(question), len(documents))
            assert order[places[0]] == number
            assert len(scores) == 1 or scores[0] > scores[1], "a tie would be won by the order alone"


@pytest.mark.parametrize(
    "documents",
    [
        ["red lamp", "blue kettle"],
        ["the lamp costs ten", "the kettle costs ten"],
        ["lamp", "kettle kettle kettle lamp"],
        ["a lamp of glass and of copper that stands by the window", "kettle"],
    ],
)
def test_of_two_documents_the_right_one_is_first(documents: list[str]) -> None:
    tokenizer = Tokenizer()
    for order in (documents, documents[::-1]):
        index = build_index(map(tokenizer, order), tokenizer)
        places, scores = index.search(tokenizer("kettle"), 2)
        assert "kettle" in order[places[0]] and scores[0] > 0
