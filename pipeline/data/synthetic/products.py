"""Products of the synthetic marketplace and their wording.

Product names are real and have synonyms in American and British English; brands are invented. Types of one
group are substitutes, types of different groups are not. Accessories and decoys repeat the name of a product
and are not the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random


@dataclass(frozen=True)
class ProductType:
    """Type of product with its names."""

    us: tuple[str, ...]  # names in American English, synonyms of each other
    gb: tuple[str, ...]  # names in British English
    group: str  # types of one group are substitutes
    category: str
    accessories: tuple[str, ...]
    attributes: tuple[str, ...]  # keys of ATTRIBUTES that fit; a brand always fits
    price_range: tuple[int, int]  # whole dollars or pounds


@dataclass(frozen=True)
class Category:
    """Product types that share attributes, accessories and prices.

    Each string of `groups` is a group; ";" separates types, "|" American and British names.
    """

    name: str
    attributes: str
    accessories: str
    price_range: tuple[int, int]
    groups: tuple[str, ...]


CATEGORIES = (
    Category(
        "footwear",
        "colour, audience, tier",
        "laces, polish, storage bag",
        (25, 140),
        (
            "sneakers, running shoes, tennis shoes | trainers, running shoes; hiking boots, walking boots",
            "slippers, house shoes; sandals, flip flops",
        ),
    ),
    Category(
        "clothing",
        "colour, audience, fabric",
        "hanger, patch, storage bag",
        (15, 90),
        (
            "sweater, pullover | jumper, pullover; hoodie, sweatshirt",
            "pants, trousers | trousers, slacks; jeans, denims",
            "raincoat, rain jacket | mac, raincoat; winter coat, parka",
            "pajamas, sleepwear | pyjamas, nightwear; bathrobe, robe | dressing gown, bathrobe",
        ),
    ),
    Category(
        "bags",
        "colour, size, tier",
        "strap, lock, cover",
        (20, 160),
        (
            "suitcase, luggage; duffel bag, holdall",
            "purse, handbag | handbag, purse; backpack, rucksack | rucksack, backpack",
        ),
    ),
    Category(
        "furniture",
        "colour, size, frame",
        "cover, legs, polish",
        (80, 900),
        (
            "couch, sofa | sofa, settee; armchair, easy chair",
            "dresser, chest of drawers | chest of drawers, dresser; closet, wardrobe | wardrobe, closet",
            "desk, writing table; dining table, kitchen table",
        ),
    ),
    Category(
        "textiles",
        "colour, size, fabric",
        "hooks, cleaner, storage bag",
        (15, 120),
        (
            "comforter, quilt | duvet, quilt; blanket, throw",
            "curtains, drapes; blinds, window shades",
        ),
    ),
    Category(
        "devices",
        "colour, size, tier",
        "case, charger, stand",
        (90, 900),
        (
            "laptop, notebook computer; tablet, touchscreen tablet",
            "cell phone, smartphone | mobile phone, smartphone; landline phone, home phone",
            "television, tv | telly, television; monitor, computer screen",
            "headphones, headset; earbuds, earphones | earphones, earbuds",
        ),
    ),
    Category(
        "kitchen",
        "colour, size, tier",
        "lid, filter, stand",
        (20, 250),
        (
            "frying pan, skillet; saucepan, cooking pot",
            "coffee maker, coffee machine; tea kettle, electric kettle | kettle, electric kettle",
            "refrigerator, fridge | fridge, refrigerator; freezer, deep freezer",
        ),
    ),
    Category(
        "appliances",
        "colour, power, tier",
        "filter, cover, stand",
        (40, 400),
        (
            "vacuum cleaner, vacuum | hoover, vacuum cleaner; carpet sweeper, floor sweeper",
            "space heater, room heater | fan heater, room heater; electric blanket, heated blanket",
        ),
    ),
    Category(
        "baby",
        "colour, size, tier",
        "cover, strap, storage bag",
        (10, 300),
        (
            "diapers, nappies | nappies, diapers; training pants, pull-ups",
            "stroller, baby carriage | pushchair, pram; baby carrier, baby sling",
            "crib, baby bed | cot, baby bed; bassinet, moses basket | moses basket, bassinet",
        ),
    ),
    Category(
        "garden",
        "colour, power, size",
        "batteries, cover, stand",
        (15, 350),
        (
            "flashlight, torch | torch, flashlight; lantern, camping lamp",
            "lawn mower, grass cutter; string trimmer, weed whacker | strimmer, grass trimmer",
            "garden hose, hosepipe | hosepipe, garden hose; sprinkler, lawn sprinkler",
        ),
    ),
    Category(
        "sports",
        "colour, size, tier",
        "lock, strap, cover",
        (20, 500),
        (
            "bicycle, bike | bike, bicycle; scooter, kick scooter",
            "dumbbells, hand weights; kettlebell, kettlebell weight",
            "tent, camping tent; tarp, camping shelter",
        ),
    ),
    Category(
        "pets",
        "colour, size, fabric",
        "cover, strap, cleaner",
        (10, 110),
        (
            "dog bed, pet bed; dog crate, dog kennel | dog kennel, dog crate",
            "dog leash, dog lead | dog lead, dog leash; dog harness, dog vest",
        ),
    ),
)

# Attribute -> value -> synonyms. Words that begin with "for" follow the product name, others precede it.
ATTRIBUTES: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {
        "red": ("red", "crimson", "scarlet"),
        "blue": ("blue", "navy"),
        "green": ("green", "emerald"),
        "black": ("black",),
        "white": ("white", "ivory"),
        "gray": ("gray", "charcoal"),
        "pink": ("pink",),
        "brown": ("brown", "chocolate"),
    },
    "audience": {
        "men": ("men's", "for men", "for him"),
        "women": ("women's", "ladies", "for her"),
        "kids": ("kids", "children's", "for children"),
    },
    "tier": {
        "cheap": ("cheap", "budget", "affordable", "bargain"),
        "luxury": ("luxury", "premium", "designer"),
    },
    "size": {"small": ("small", "compact", "mini"), "large": ("large", "extra large", "big")},
    "fabric": {"cotton": ("cotton",), "wool": ("wool", "woolen"), "polyester": ("polyester", "synthetic")},
    "frame": {"wood": ("wooden", "oak"), "metal": ("metal", "steel")},
    "power": {"cordless": ("cordless", "battery powered", "rechargeable"), "corded": ("corded", "plug-in")},
}

BRITISH = {"gray": "grey", "woolen": "woollen"}

BRANDS = (
    "Ludwen",
    "Orrisk",
    "Nobrin",
    "Drovan",
    "Hesken",
    "Bramdor",
    "Velmo",
    "Pellan",
    "Silven",
    "Oakwen",
    "Torvia",
    "Kestrio",
)

# things that are not the product but have its name in their own
DECOYS = (
    "{} poster",
    "toy {}",
    "{} repair service",
    "{} rental",
    "{} sticker",
    "book about {}",
    "{} print mug",
)

QUERY_FILLERS = ("buy {}", "{} online", "best {}", "{} near me", "{} deals")

AD_FILLERS = ("on sale", "free delivery", "new in", "best seller", "top rated", "today", "limited offer")

# texts of landing pages, by kind of page
PAGE_TEXTS = {
    "product": (
        "{ad} in stock, add to basket",
        "buy {ad} here, delivered in two days",
        "{ad}, order now, ready to ship",
    ),
    "listing": (
        "shop our whole range: {name}, {sibling} and more",
        "all offers in one place: {sibling} and {name}",
    ),
    "sold_out": ("{ad} sold out, no longer available", "sorry, {ad} is discontinued and gone"),
    "article": ("how to clean your {name}, tips and advice", "the history of the {name}, read our blog"),
    "error": ("page not found, the {name} offer was removed", "error, this {name} link is broken, go back"),
}


@dataclass(frozen=True)
class Product:
    """Product that a query asks for or an ad offers: a type, or an accessory or decoy with its name."""

    type: ProductType
    values: dict[str, str]  # by attribute or "brand"
    accessory: str | None = None
    decoy: str | None = None


@dataclass(frozen=True)
class Wording:
    """Words for a product: a name of its type, and a word for each value by attribute."""

    name: str
    words: dict[str, str]


@dataclass(frozen=True)
class Query:
    """Query text, the wanted product and its words."""

    text: str
    want: Product
    wording: Wording


def _split(text: str, separator: str = ",") -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(separator))


@cache
def product_types() -> tuple[ProductType, ...]:
    """Return all product types, in the order of the table."""
    types = []
    for category in CATEGORIES:
        for group in category.groups:
            for names in _split(group, ";"):
                us, gb = map(_split, (_split(names, "|") * 2)[:2])
                accessories, attributes = _split(category.accessories), _split(category.attributes)
                types.append(
                    ProductType(us, gb, group, category.name, accessories, attributes, category.price_range)
                )
    return tuple(types)


@cache
def siblings(product_type: ProductType) -> tuple[ProductType, ...]:
    """Return the other types of the group."""
    return tuple(
        other for other in product_types() if other.group == product_type.group and other != product_type
    )


def attribute_values(attribute: str) -> tuple[str, ...]:
    """Return the values of an attribute."""
    return BRANDS if attribute == "brand" else tuple(ATTRIBUTES[attribute])


def _pick(options: tuple[str, ...], query_word: str | None, copy: float, rng: Random) -> str:
    """Draw the word of the query with probability `copy` if it is an option, else another option."""
    if query_word in options and (len(options) == 1 or rng.random() < copy):
        return str(query_word)
    return rng.choice([option for option in options if option != query_word])


def build_wording(
    product: Product, market: str, rng: Random, query: Wording, copy_name: float, copy_word: float
) -> Wording:
    """Draw words for a product; those of the query are reused with the given probabilities."""
    name = _pick(product.type.gb if market == "gb" else product.type.us, query.name, copy_name, rng)
    words = {}
    for attribute, value in product.values.items():
        options = (value,) if attribute == "brand" else ATTRIBUTES[attribute][value]
        if market == "gb":
            options = tuple(BRITISH.get(option, option) for option in options)
        words[attribute] = _pick(options, query.words.get(attribute), copy_word, rng)
    return Wording(name, words)


def build_phrase(product: Product, wording: Wording, rng: Random) -> str:
    """Return brand, values and name in the order of English."""
    name = wording.name
    if product.decoy:
        name = product.decoy.format(name)
    elif product.accessory:
        name = rng.choice(("{part} for {name}", "{name} {part}")).format(part=product.accessory, name=name)
    words = sorted(wording.words.values(), key=lambda word: (word.startswith("for "), word not in BRANDS))
    before = [word for word in words if not word.startswith("for ")]
    return " ".join((*before, name, *words[len(before) :]))


def build_query(market: str, rng: Random) -> Query:
    """Draw a query: mostly for a product with one or two values, seldom for an accessory."""
    product_type = rng.choice(product_types())
    wishes = [
        rng.choice(("brand", *product_type.attributes))
        for _ in range(rng.choices((0, 1, 2), (10, 55, 35))[0])
    ]
    accessory = rng.choice(product_type.accessories) if rng.random() < 0.06 else None
    want = Product(product_type, {wish: rng.choice(attribute_values(wish)) for wish in wishes}, accessory)
    wording = build_wording(want, market, rng, Wording("", {}), 0.0, 0.0)
    text = build_phrase(want, wording, rng)
    return Query(text if len(text.split()) > 1 else rng.choice(QUERY_FILLERS).format(text), want, wording)


def build_price(product: Product, market: str, rng: Random) -> str:
    """Draw a price that fits the type and its tier; accessories and decoys cost a fifth."""
    tier = {"cheap": 0.6, "luxury": 2.5}.get(product.values.get("tier", ""), 1.0)
    amount = (
        rng.randint(*product.type.price_range) * tier * (0.2 if product.accessory or product.decoy else 1.0)
    )
    return f"{'£' if market == 'gb' else '$'}{max(round(amount), 3)}"


def build_page(kind: str, product: Product, phrase: str, wording: Wording, rng: Random) -> str:
    """Draw the text of a landing page; `phrase` is the text of the ad."""
    return rng.choice(PAGE_TEXTS[kind]).format(
        ad=phrase, name=wording.name, sibling=rng.choice(siblings(product.type)).us[0]
    )


def pad_text(text: str, num_words: int, rng: Random) -> str:
    """Add fillers up to about `num_words` words, so that the length says nothing about the grade."""
    fillers = rng.sample(AD_FILLERS, 3)
    while len(text.split()) < num_words and fillers:
        text = f"{text} {fillers.pop()}"
    return text
