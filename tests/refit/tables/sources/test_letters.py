# ruff: noqa: RUF001
"""Encodings are told apart by the letters of many languages, in texts made up for each."""

import pytest

from refit.tables.sources.encoded_text import open_text


def decode(content: bytes) -> str:
    with open_text(content) as file:
        return file.read().decode()


LANGUAGES = {
    "cs": "Balíček přišel včas;Vrácená částka nebyla správná, žádám o opravu;Příjemná obsluha, čistý pokoj, výborné jídlo",
    "sk": "Balík prišiel včas a v poriadku;Žiaľ, suma nebola správna, žiadam o vrátenie peňazí;Príjemné prostredie, čistá izba",
    "pl": "Paczka dotarła szybko, dziękuję;Niestety sprzęt nie działa, proszę o zwrot pieniędzy;Miła obsługa i czysty pokój",
    "hu": "A csomag időben megérkezett;Sajnos a hűtő nem működik, kérem vissza a pénzem;Kedves kiszolgálás, tiszta szoba",
    "ro": "Coletul a sosit la timp, mulţumesc;Din păcate aparatul nu funcţionează;Mâncare bună şi cameră curată",
    "hr": "Paket je stigao na vrijeme, zadovoljan sam kućištem;Nažalost uređaj ne radi, tražim vraćanje novca;Čista soba i doručak",
    "tr": "Kargo zamanında geldi, teşekkürler;Maalesef cihaz çalışmıyor, paramı geri istiyorum;Güler yüzlü hizmet, sıcak yemek",
    "el": "Το δέμα ήρθε στην ώρα του;Δυστυχώς η συσκευή δεν λειτουργεί, ζητώ τα χρήματά μου;Άψογη εξυπηρέτηση",
    "ru": "Посылка пришла вовремя;К сожалению, прибор не работает, прошу вернуть деньги;Чистый номер и вкусная еда",
    "lt": "Siuntinys atėjo laiku, ačiū;Deja, prietaisas neveikia, prašau grąžinti pinigus;Švarus kambarys ir skanūs pietūs",
    "lv": "Paciņa pienāca laikā, paldies;Diemžēl ierīce nestrādā, lūdzu atmaksāt naudu;Tīra istaba un garšīgs ēdiens",
    "et": "Pakk jõudis õigel ajal kohale;Kahjuks seade ei tööta, palun raha tagasi;Puhas tuba, öösel oli vaikne, hea söök",
    "de": "Das Päckchen kam pünktlich;Leider läuft das Gerät nicht, ich möchte das Geld zurück;Schönes Zimmer, große Küche",
    "fr": "Le colis est arrivé à temps;L'appareil ne marche pas, j'ai demandé à être remboursé;Chambre très propre, reçu aimable",
    "es": "El paquete llegó a tiempo, ¡gracias!;Pero el aparato no encendió, pido la devolución;Habitación pequeña, buen baño",
    "pt": "A encomenda não demorou;O aparelho não funciona, peço a devolução;Bom pequeno-almoço, três refeições, chão limpo",
    "it": "Il pacco è arrivato, però tardi;Purtroppo l'apparecchio non va più, la qualità è bassa;Città bella, stanza già pulita",
    "sv": "Paketet kom på tisdagen;Tyvärr går apparaten sönder, jag vill få tillbaka pengarna;Städat rum, god frukost på hotellet",
    "da": "Pakken kom på tirsdag, tak;Desværre går apparatet ikke, jeg ønsker pengene tilbage;Pænt værelse, lækker mad",
    "ja": "荷物は時間どおりに届きました;残念ながら動きません、返金をお願いします;きれいな部屋とおいしい食事でした",
}
WRITTEN = {
    **dict.fromkeys(("cs", "sk", "pl", "hu", "hr"), ("cp1250", "iso8859_2", "cp852")),
    **{"ro": ("cp1250", "iso8859_2"), "tr": ("cp1254",), "el": ("cp1253", "iso8859_7")},
    **{
        "ru": ("cp1251", "koi8_r", "cp866", "iso8859_5", "mac_cyrillic"),
        "lt": ("cp1257",),
        "lv": ("cp1257",),
        "et": ("cp1252", "cp1257"),
    },
    **dict.fromkeys(("it", "da", "es", "pt"), ("cp1252", "cp850")),
    **dict.fromkeys(("de", "fr", "sv"), ("cp1252", "cp850", "mac_roman")),
    **{"ja": ("cp932", "euc_jp")},
}


@pytest.mark.parametrize("num_rows", [3, 60])
@pytest.mark.parametrize(("language", "encoding"), [(language, encoding) for language in WRITTEN for encoding in WRITTEN[language]])
def test_the_letters_of_a_language_tell_its_encoding(language: str, encoding: str, num_rows: int) -> None:
    said = LANGUAGES[language].split(";")
    rows = [(str(number), said[number % len(said)]) for number in range(num_rows)]
    content = "".join(f"{number};{text}\n" for number, text in [("n", "text"), *rows])
    assert decode(content.encode(encoding)) == content


FEW = [
    ("cp1252", "µm,5 °C,£5,«oui»,façade,naïve,Nº 3,Malmö,Bogotá,São Paulo,Þór,Łódź"),
    ("cp1252", "Ø12,25±1,3½,10×20,5µA,3ª,±5,1º,40±2,µm,30±1,¼,35±2"),
    ("cp1252", "Ljubljana,Zürich,ß"),
    ("cp1254", "İzmir,Muğla,Şanlıurfa,Kırşehir,Niğde,Aydın"),
    ("cp1250", "Łódź,Kraków,Gdańsk,Wrocław"),
    ("cp1250", "Plzeň,Děčín,Třebíč,Ústí nad Labem"),
]


@pytest.mark.parametrize(("encoding", "places"), FEW)
def test_a_few_names_tell_their_encoding(encoding: str, places: str) -> None:
    content = "n;place\n" + "".join(f"{number};{place}\n" for number, place in enumerate(places.split(",")))
    content = content.encode(encoding, "ignore").decode(encoding)
    assert decode(content.encode(encoding)) == content
