"""Word lists behind the embedded sample: everyday topics, people, places and the sentence patterns that join them.

Everything here is plain data. The generators (`make_threads.py`, `make_tables.py`, `make_documents.py`) draw
from it with seeded random numbers; no generator holds words of its own.
"""

from __future__ import annotations

TOPICS: dict[str, list[str]] = {
    name: words.split()
    for name, words in {
        "baking": "oven dough yeast flour tray loaf crust rye butter bagel pastry whisk glaze muffin starter rolling scone icing",
        "garden": "tomato compost hose shovel hedge seedling slug trellis lawn pumpkin rake mulch basil greenhouse weed tulip fence pepper",
        "cycling": "chain saddle pedal helmet tyre brake pump spoke basket gear bell puncture frame handlebar panniers lock mudguard hill",
        "coffee": "grinder kettle filter espresso mug roast foam bean crema scale thermos syrup lid dripper latte tamper spoon decaf",
        "fishing": "rod reel bait trout hook river canoe paddle pier net boots bobber carp line tide lure bucket dock",
        "music": "guitar drum violin amp pedalboard chord piano banjo choir tempo string flute record speaker cello metronome capo trumpet",
        "camping": "tent lantern stove backpack trail campfire rope map compass sleeping hammock cooler torch poncho ridge blanket bear whistle",
        "painting": "brush canvas easel pigment varnish sketch palette charcoal portrait mural ink paper gallery stencil primer turpentine crayon sponge",
        "knitting": "yarn needle scarf mitten sweater wool pattern button sock stitch hat loom cardigan cable gauge sleeve quilt thimble",
        "birds": "sparrow feeder owl nest binoculars heron finch seed pigeon hawk feather pond robin perch goose marsh falcon birdhouse",
        "repair": "hammer drill ladder screw wrench plaster faucet pipe sander shelf hinge paint socket tile gutter saw glue toolbox",
        "boardgames": "dice token meeple rulebook deck puzzle timer pawn castle auction sheep scoreboard expansion tournament rook dungeon bluff marble",
        "astronomy": "telescope comet lens orbit eclipse mirror planet tripod meteor crater galaxy observatory eyepiece moon star satellite aurora nebula",
        "photography": "camera shutter flash album exposure darkroom zoom negative sunset print battery strap portfolio slide viewfinder postcard studio collage",
        "trains": "platform engine carriage ticket tunnel signal conductor timetable bridge railway rail depot locomotive sleeper junction freight wagon luggage",
        "kitchen": "skillet knife onion garlic soup ladle pot rice lemon pickle noodle blender apron pantry vinegar recipe dumpling cutting",
        "pets": "puppy kitten leash hamster aquarium parrot collar kennel vet turtle treats whisker groomer rabbit cage goldfish biscuit litter",
        "sports": "racket goalie referee jersey stadium tennis hockey sprint marathon coach trophy cricket skate paddleboard volley snorkel rowing bowling",
        "weather": "storm snowfall umbrella thunder fog frost heatwave puddle drizzle barometer hail breeze icicle forecast rainbow flood sunshine windmill",
        "books": "novel library chapter bookmark author poem bestseller mystery essay cover diary dictionary comic editor bookshop margin preface biography",
        "crafts": "clay kiln pottery candle bead mosaic origami lathe carving soap leather wreath ribbon glitter basketry weaving stamp enamel",
        "travel": "passport ferry hostel suitcase souvenir island museum beach airport market lagoon fortress volcano tram visa cruise harbour desert",
        "computers": "keyboard printer monitor laptop router modem webcam mouse folder charger password backup spreadsheet scanner headset joystick tablet cursor",
        "house": "sofa curtain carpet fireplace attic balcony lamp doorbell mattress cellar chimney wallpaper bathtub radiator wardrobe bookcase staircase window",
    }.items()
}

# Two words that belong together: a reply may name the second where its parent named the first.
ASSOCIATES: dict[str, str] = {
    "oven": "baked", "dough": "kneading", "hose": "watering", "shovel": "digging", "lawn": "mowing",
    "tyre": "inflating", "saddle": "sitting", "kettle": "boiling", "espresso": "caffeine", "trout": "fish",
    "canoe": "rowed", "guitar": "strumming", "drum": "drumming", "violin": "bow", "tent": "camped",
    "compass": "north", "brush": "painted", "sketch": "drawing", "yarn": "knitted", "needle": "sewing",
    "owl": "hooting", "nest": "eggs", "hammer": "nails", "drill": "drilling", "pipe": "leaking",
    "dice": "rolled", "rook": "chess", "telescope": "stargazing", "comet": "tail", "camera": "photos",
    "album": "pictures", "ticket": "fare", "tunnel": "underground", "soup": "slurping", "onion": "crying",
    "puppy": "barking", "kitten": "purring", "racket": "serve", "marathon": "running", "goalie": "saves",
    "storm": "lightning", "snowfall": "sledding", "umbrella": "dry", "novel": "reading", "library": "borrowed",
    "kiln": "fired", "candle": "wax", "ferry": "sailed", "passport": "border", "keyboard": "typing",
    "printer": "printed", "password": "login", "sofa": "napping", "lamp": "bright", "attic": "dusty",
}  # fmt: skip

NAMES = (
    "Marta Ivo Lena Oskar Priya Tomas Noor Felix Greta Hugo Ines Jonas Kaja Luca Mina Nils Olga Pavel Quinn Rosa "
    "Stefan Talia Umar Vera Wim Xenia Yusuf Zoe Anders Bruno Clara Dario Edith Farid Gwen Hanna Igor Judit Kofi "
    "Lotte Mateo Nadia Otto Paula Rafael Selma Theo Ursula Viktor Wanda Yara Zeno Alba Boris Cora Dmitri Elsa "
    "Fabio Gita Heidi Iris Jakub Karin Leif Maud Nora Omar Petra Rhea Sven Tilda Uma Vito Wes Yuki Zara"
).split()

PLACES = (
    "Ashford Birchwood Cedarton Dunmore Eastvale Fernley Glenrock Hartwell Ironbridge Juniper Kingsley Larkhill "
    "Maplewood Northgate Oakdale Pinecrest Quarry Ravenna Saltmarsh Thornbury Upton Verona Westbrook Yarrow Zenith "
    "Amberly Brookside Clifton Dovedale Elmhurst"
).split()

ADJECTIVES = (
    "old red blue green heavy cheap noisy rusty bright tiny huge broken wooden soft sharp smooth dusty fancy plain "
    "sticky crooked shiny cold warm wet narrow wide quiet yellow purple striped round spare borrowed antique sturdy "
    "fragile clumsy splendid dull"
).split()

UNITS = "minutes hours days weeks months years dollars euros grams litres metres miles pieces times".split()

# What a post says of its own: {a} {b} are topic nouns, {j} an adjective, {k} a number, {u} a unit, {p} a place.
STATEMENTS = """
my {j} {a} broke right after the {b} arrived
i keep the {a} next to the {b} and it works fine
found a {j} {a} in {p} for {k} {u}
we spent {k} {u} looking for a {a} and a {b}
the {a} from {p} is better than any {b}
nobody told me a {a} needs a {j} {b}
last week the {b} fell on my {a}
i would never lend my {a} to somebody with a {b}
my sister paints every {a} like a {j} {b}
the shop in {p} sells the {a} with a {b}
it took {k} {u} to clean the {j} {a}
a {j} {a} is all i need besides the {b}
my uncle swears by his {a} and his {j} {b}
the {j} {a} looks strange beside a {b}
bought one {a} and {k} {u} later the {b} was gone
does anyone still use a {a} without a {b}
in {p} they give you a {b} with each {a}
i dropped the {a} into the {b} again
the {b} is fine but the {a} feels {j}
i replaced the {a} with a {j} one after {k} {u}
there was a {j} {b} behind the {a}
try to warm up the {a} before you touch the {b}
my neighbour in {p} built a {a} out of a {b}
waiting {k} {u} for a {a} is normal
every {a} i saw in {p} was {j}
put the {a} away first and then the {b}
i learned about the {a} in {p} years ago
the manual says the {a} goes under the {b}
""".strip().splitlines()

# How a reply points back: {x} {y} are nouns of the parent, {j} {k} {u} {p} its adjective, number, unit, place.
TIES_TWO = """
the part about the {x} and the {y} is spot on
are you sure the {x} and the {y} go together?
i had the same trouble with a {x} and a {y}
your {x} and {y} story made my day
why would the {x} matter for a {y}?
so the {x} plus the {y} did it?
you had me at {x} and {y}
thanks for explaining the {x} and the {y}
what you wrote on the {x} and {y} is wrong
which {x} goes with that {y}?
""".strip().splitlines()
TIES_ONE = """
agreed on the {x}
what kind of {x} was that?
your {x} sounds lovely
can you post a picture of the {x}?
i doubt the {x} was the reason
how is the {x} doing now?
that {x} of yours sounds like trouble
good point about the {x}
""".strip().splitlines()
TIES_ADJECTIVE = """
a {j} {x} sounds odd to me
i love a {j} {x}
how {j} was the {x} exactly?
{j} {x}, really?
""".strip().splitlines()
TIES_NUMBER = """
{k} {u} sounds wrong to me
{k} {u} is a bargain
you really counted {k} {u}?
only {k} {u}? lucky you
""".strip().splitlines()
TIES_PLACE = """
greetings from {p} by the way
i live near {p}, small world
is it always like that in {p}?
{p} again, of course
""".strip().splitlines()
TIES_ASSOCIATE = """
all that {x} must be fun
i could not stand the {x}
so you enjoy the {x} then
the {x} part made me smile
""".strip().splitlines()
TIES_NAME = """
{n}, tell us more
{n} has a point
i am with {n} here
thank you {n}
""".strip().splitlines()
TIES_QUOTE = """
".. {q} .." made me laugh
you said ".. {q} .." and i disagree
".. {q} .." is my new motto
""".strip().splitlines()
TO_OPENING = """
to answer the opening post
op here is my advice
good topic op
back to the original question
op should just ask around
welcome op
""".strip().splitlines()
TO_PREVIOUS = """
this right here
exactly what i was about to say
lol same
the post above gets it
came here to say the same
cannot believe i just read that
""".strip().splitlines()

OPENINGS = """
{t} thread: does anyone have a {j} {a} to go with a {b}?
new to {t}, is a {a} worth {k} {u}?
let us talk about {t}, i start with my {a} and my {b}
need help with {t}: the {a} and the {j} {b} do not fit
{t} question, should the {a} come from {p}?
""".strip().splitlines()
