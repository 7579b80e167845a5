"""Things that the closed world lacks, so that a model learns to decline them."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from .closed_world import World
from .sentences import nouns

UNKNOWN = (
    *("gorilla", "poodle", "bridge", "toilet", "shoe", "table", "river", "submarine", "clarinet"),
    *("ladder", "ostrich", "walnut", "hammer", "mailbox", "toothbrush", "canoe", "accordion"),
    *("lighthouse", "microscope", "sofa"),
)
"""Twenty things seed-mini cannot draw."""

MORE_UNKNOWN = (
    *("jaguar", "hyena", "walrus", "vulture", "salmon", "pelican", "grasshopper"),
    *("antelope", "gecko", "moth", "cobra", "terrier", "daisy", "oak", "bamboo", "fern"),
    *("lavender", "ivy", "plum", "raspberry", "cauliflower", "spinach", "zucchini", "lentils"),
    *("omelette", "lasagna", "muffin", "milkshake", "yogurt", "noodles", "steak", "salami"),
    *("tower", "windmill", "church", "barn", "fountain", "staircase", "chimney", "harbor"),
    *("truck", "ferry", "tram", "wheelbarrow", "hovercraft", "parachute", "raft", "excavator"),
    *("chair", "wardrobe", "mirror", "carpet", "pillow", "curtain", "desk", "lampshade"),
    *("spoon", "kettle", "blender", "plate", "napkin", "corkscrew", "frying pan", "oven"),
    *("drill", "shovel", "rake", "nail", "tape measure", "paint bucket", "tweezers", "stapler"),
    *("jacket", "scarf", "glove", "belt", "boot", "apron", "bracelet", "wristwatch"),
)
"""Eighty more; none of these hundred, and none that contains one of them, is ever in training."""

_NOT_KNOWN = (
    # animals
    *("wombat", "lemur", "otter", "weasel", "ferret", "lynx", "coyote", "jackal", "wolverine"),
    *("opossum", "armadillo", "anteater", "tapir", "platypus", "echidna", "yak", "gazelle", "ibex"),
    *("reindeer", "mule", "ox", "calf", "lamb", "puma", "cheetah", "panther", "meerkat", "mole"),
    *("porcupine", "chinchilla", "guinea pig", "gerbil", "baboon", "chimpanzee", "gibbon"),
    *("manatee", "sea lion", "narwhal", "stingray", "eel", "trout", "tuna", "herring", "goldfish"),
    *("seahorse", "starfish", "jellyfish", "squid", "clam", "mussel", "crayfish", "barnacle"),
    *("hawk", "falcon", "raven", "crow", "magpie", "sparrow", "robin", "blackbird", "pigeon"),
    *("seagull", "stork", "heron", "crane", "woodpecker", "hummingbird", "kingfisher", "pheasant"),
    *("quail", "emu", "cassowary", "kiwi bird", "canary", "finch", "albatross", "puffin"),
    *("viper", "python", "iguana", "chameleon", "salamander", "newt", "toad", "tadpole"),
    *("dragonfly", "mosquito", "fly", "wasp", "hornet", "cricket", "cockroach", "termite", "flea"),
    *("centipede", "tick", "slug", "leech", "dachshund", "bulldog", "dalmatian", "beagle"),
    # plants
    *("orchid", "lily", "daffodil", "dandelion", "poppy", "violet", "iris", "carnation", "jasmine"),
    *("birch", "pine", "willow", "elm", "beech", "chestnut", "acorn", "moss", "reed", "thistle"),
    *("grass", "hedge", "bush", "vine", "bonsai", "water lily", "seaweed", "wheat", "barley"),
    # food
    *("apricot", "fig", "date", "papaya", "guava", "lychee", "pomegranate", "grapefruit", "lime"),
    *("blackberry", "cranberry", "gooseberry", "currant", "olive", "radish", "beetroot", "turnip"),
    *("leek", "celery", "asparagus", "artichoke", "cabbage", "lettuce", "pea", "bean", "ginger"),
    *("almond", "hazelnut", "cashew", "pistachio", "raisin", "spaghetti", "macaroni", "ravioli"),
    *("risotto", "soup", "salad", "stew", "curry", "porridge", "cereal", "toast", "baguette"),
    *("sausage", "ham", "meatball", "kebab", "schnitzel", "roast chicken", "turkey leg"),
    *("pudding", "jelly", "jam", "marmalade", "syrup", "tart", "brownie", "macaron", "biscuit"),
    *("tea", "milk", "juice", "lemonade", "water", "wine", "beer", "whisky", "cocoa", "smoothie"),
    *("salt", "sugar", "flour", "mustard", "ketchup", "mayonnaise", "vinegar", "oil", "tofu"),
    # places and buildings
    *("hut", "cabin", "palace", "temple", "mosque", "pyramid", "skyscraper", "school", "hospital"),
    *("library", "museum", "theater", "stadium", "factory", "garage", "shed", "igloo", "cave"),
    *("island", "beach", "desert", "forest", "lake", "waterfall", "valley", "glacier", "swamp"),
    *("road", "street", "tunnel", "airport", "station", "fence", "gate", "wall", "roof", "window"),
    *("elevator", "swimming pool", "playground", "garden", "park", "city", "village", "farm"),
    # vehicles
    *("van", "lorry", "jeep", "limousine", "minibus", "caravan", "tank", "bulldozer", "forklift"),
    *("tricycle", "unicycle", "moped", "carriage", "sled", "snowmobile", "ski lift", "cable car"),
    *("yacht", "rowing boat", "kayak", "steamship", "gondola", "surfboard", "glider", "jet"),
    *("hot air balloon", "zeppelin", "satellite", "space station", "drone", "wagon", "trolley"),
    # things at home
    *("bench", "stool", "armchair", "cupboard", "shelf", "drawer", "cradle", "hammock", "mattress"),
    *("blanket", "towel", "rug", "vase", "clock", "lantern", "chandelier", "fireplace", "stove"),
    *("fridge", "freezer", "toaster", "microwave", "dishwasher", "washing machine", "iron"),
    *("vacuum cleaner", "fan", "heater", "fork", "knife", "bowl", "cup", "mug", "glass", "jar"),
    *("bottle", "pot", "pan", "lid", "tray", "teacup", "saucer", "whisk", "ladle", "sieve"),
    *(
        "sponge",
        "mop",
        "dustpan",
        "trash can",
        "brush",
        "comb",
        "hairdryer",
        "razor",
        "mirror ball",
    ),
    *("shampoo", "perfume", "towel rack", "shower", "sink", "faucet", "pipe", "doorbell", "lock"),
    # tools and office
    *("saw", "pliers", "screwdriver", "screw", "bolt", "chisel", "file", "anvil", "rope", "chain"),
    *("hook", "pulley", "spring", "wheel", "engine", "battery", "plug", "cable", "switch"),
    *("pen", "eraser", "ruler", "compass", "notebook", "newspaper", "letter", "stamp", "calendar"),
    *("map", "globe", "folder", "paper clip", "glue", "tape", "chalk", "blackboard", "calculator"),
    *("printer", "keyboard", "computer mouse", "tablet", "screen", "radio", "record player"),
    *("loudspeaker", "projector", "typewriter", "binoculars", "thermometer", "syringe", "bandage"),
    # clothes and sports
    *("coat", "sweater", "shorts", "skirt", "suit", "vest", "pajamas", "uniform", "cap", "helmet"),
    *(
        "slipper",
        "sandal",
        "sneaker",
        "necklace",
        "earring",
        "brooch",
        "purse",
        "wallet",
        "handbag",
    ),
    *("tennis racket", "golf club", "hockey stick", "baseball bat", "volleyball", "rugby ball"),
    *("dumbbell", "trampoline", "ski", "snowboard", "swing", "slide", "frisbee", "dart", "whistle"),
    # music and play
    *("piano", "flute", "harp", "cello", "trombone", "tuba", "harmonica", "banjo", "tambourine"),
    *("xylophone", "organ", "bagpipes", "doll", "puppet", "marble", "yo-yo", "chessboard", "card"),
    *("mask", "costume", "flag", "banner", "statue", "painting", "photograph", "sword", "spear"),
    *("bow", "arrow", "cannon", "pistol", "armor", "throne", "scepter", "treasure chest", "coin"),
    # people, fantasy and the rest
    *(
        "man",
        "woman",
        "child",
        "baby",
        "boy",
        "girl",
        "king",
        "queen",
        "knight",
        "pirate",
        "wizard",
    ),
    *("witch", "doctor", "teacher", "policeman", "firefighter", "astronaut", "cowboy", "clown"),
    *("mermaid", "fairy", "elf", "dwarf", "giant", "troll", "vampire", "zombie", "skeleton"),
    *(
        "angel",
        "devil",
        "monster",
        "face",
        "hand",
        "foot",
        "eye",
        "heart",
        "brain",
        "bone",
        "tooth",
    ),
    *("lightning", "storm", "rain", "fog", "wave", "comet", "galaxy", "meteor", "rock", "crystal"),
    *("feather", "nest", "egg carton", "spider web", "cage", "aquarium", "horseshoe", "saddle"),
)


def known_words(world: World) -> frozenset[str]:
    """Return all words for the objects of a world, in small letters."""
    return frozenset(noun.lower() for concept in world.concepts for noun in nouns(concept))


def barred_words(world: World) -> frozenset[str]:
    """Return words that training must not decline: known ones, and those kept for measuring."""
    return known_words(world) | {*UNKNOWN, *MORE_UNKNOWN}


def unknown_objects(world: World, others: Sequence[str] = ()) -> list[str]:
    """Return things that a world lacks and that training may decline to draw.

    None contains, as a whole word, a known word or one that is kept for measuring. ``others`` adds
    words, such as the rest of the artwork.
    """
    barred = barred_words(world)

    def is_allowed(thing: str) -> bool:
        words = thing.lower().split()
        stretches = (words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1))
        return not any(" ".join(stretch) in barred for stretch in stretches)

    return [thing for thing in dict.fromkeys([*_NOT_KNOWN, *others]) if is_allowed(thing)]


_BEGINNINGS = (
    "b",
    "br",
    "c",
    "ch",
    "cl",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "qu",
    "r",
    "s",
    "sl",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
)
_MIDDLES = ("a", "e", "i", "o", "u", "ai", "ee", "oa", "oo", "ou")
_ENDS = (
    "b",
    "ck",
    "d",
    "ft",
    "g",
    "l",
    "ll",
    "m",
    "mp",
    "n",
    "nt",
    "p",
    "r",
    "rb",
    "rt",
    "sh",
    "st",
    "t",
    "x",
    "y",
    "zz",
)


def made_up_word(chance: random.Random, barred: Collection[str]) -> str:
    """Return a word without a meaning, or at least none of the barred ones."""
    while True:
        syllables = range(chance.choice([1, 2, 2, 3]))
        beginnings = (chance.choice(_BEGINNINGS) + chance.choice(_MIDDLES) for _ in syllables)
        word = "".join(beginnings) + chance.choice(_ENDS)
        if word not in barred:
            return word
