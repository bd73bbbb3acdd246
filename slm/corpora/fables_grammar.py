"""The words of the fables and the frame of a story, as data; the plots are in fables_plots.py.

Notation: see fables_engine.py. Two habits keep derivations unambiguous, and tests/test_fables.py
proves them for the whole grammar: no alternative of a rule begins with the whole of another, and
whatever is drawn is named in full somewhere in the story. Entries of tables are in order of
frequency. Short and common words keep a story within 127 tokens of a small BPE vocabulary.
"""
from __future__ import annotations

from slm.corpora.fables_plots import PLOTS
from slm.corpora.fables_weights import word_table

# A subject is a name and a species. Names, she and he; where they run out, start + end, then
# start + middle + end.
NAMES = ("""Mia Lily Anna Zoe Eva Tina Ella Ida Nora Luna Rosa Nina Pia Tess Uma Vera Ivy Lena Emma
 Ada Maya Dora Sue Kate""".split(), """Tom Ben Sam Max Leo Tim Jack Dan Finn Gus Bob Otis Hugo
 Otto Paul Rex Ned Sid Theo Jim Noah Fred Roy Hal""".split())
NAME_STARTS = """Mi Lo Ta Be Ki No Ru Pa Zu Fe Da Jo Ne Si Wi Vo Ga Ha Li Mo Po Ra Sa Ti To Ba Bo
 Do Fi Lu Ma Na Ni Pi Ro Te""".split()
NAME_MIDDLES = """ba be bo da de do ga go ke ko la le lo me mo ne no po re ri ro sa se so te to va
 ve vi za""".split()
NAME_ENDS = ("la na ra mi ly sa da ria lia nia ya cy bel ney via ssa line".split(),
             "bo to lo ko mo ro do gus nus don rick len ven kin bin mel zo".split())
SPECIES = """otter rabbit bear fox owl mouse frog duck cat dog hedgehog turtle goat pig lamb beaver
 badger mole deer hen crow elephant lizard snail""".split()
PRONOUNS = {"she": ("she", "he"), "her": ("her", "his"), "him": ("her", "him"),
            "hers": ("hers", "his")}

# What the world knows of each subject; drawn once per world, evenly.
FACTS = {
    "home": "by the river,by the lake,by the sea,by the pond,by the road,by the mill,by the well,"
            "on the hill,on the island,in the old oak,in the cave,in the woods,in the town,"
            "in the tower,in the valley,in the barn,in the meadow,in the castle,under the bridge,"
            "under the rock,near the farm,near the beach,near the forest,in the city".split(","),
    "food": "berries apples nuts pears plums figs grapes peas beans buns cakes pies seeds melons"
            " cookies lemons roots rolls tarts dates oats limes eggs yams".split(),
    "hobby": "sing dance paint swim climb read run draw bake dig jump cook sew fish hum spin sail"
             " ride hike hop knit row".split(),
    "colour": "red blue green yellow pink purple white brown black grey".split(),
    "fear": "the dark,storms,deep water,dogs,spiders,the wind,bees,tall trees,loud noises,snakes,"
            "bats,ghosts,the sea,fire,ice,wolves".split(","),
    # all of them fit to be said in praise: "You are so brave!"
    "trait": "kind brave clever happy gentle wise smart polite funny calm strong good nice fair"
             " jolly neat".split(),
}

ALIASES = {"hero": "subject", "friend": "subject"}

# Words that stories draw; entry i has weight (i + 1) ** -WORD_EXPONENT.
WORD_EXPONENT = 0.3
WORDS = {
    "size": "little, small, young, tiny",
    "weather": "sunny, warm, cold, windy, rainy, cloudy, hot, cool, wet, fine",
    "look": "shiny, old, new, big, tiny, soft, round, funny, long, wooden, silver, plain, fine, "
            "little, heavy, small",
    "thing": "ball, doll, book, boat, drum, bell, cup, key, ring, lamp, spoon, train, map, "
             "crown, coin, shell, sock, shoe, mask, pen, pot, star, horn, clock, box, egg",
    "flyer": "kite, hat, balloon, scarf, flag, sheet, plane, leaf",
    "spot": "under the bed, in the garden, behind the door, under the table, in the grass, "
            "under a bush, on the swing, in the mud, on the bench, in the sand, in a basket, "
            "behind a wall, under the rug, on the shelf, in the hay, in a bag, on the path, in "
            "the bath, behind a stone, in a hole",
    "yard": "under a tree, by the gate, near the fence, in the park, behind the house, by the "
            "path, in the field, by the barn, by the stream, near the wall",
    "count": "two, three, five, six, seven, ten",
    "shade": "red, blue, green, pink, purple, white",
    "sight": "a rainbow, a fair, a swing, a band, a plane, a show, a parade, a nest, a puppy",
    "warm": "hot soup, warm milk, hot tea, warm bread, hot cake, warm pie",
    "high": "a tall tree, the roof, a high wall, a pole, a branch, the tower",
    "tool": "a rope, a net, a stick, a hook, a pole, a rake",
    "plant": "tree, flower, bush, rose, bean, vine",
    "game": "ball, tag, catch, cards, chase, house",
    "sound": "loud, strange, soft, scary, sad, funny, deep",
    "monster": "monster, ghost, wolf, dragon, giant, witch",
    "load": "cart, wagon, boat, sled, truck, bike",
    "mire": "mud, snow, sand, grass, stream, ditch",
    "goal": "the gate, the hill, the bridge, the well, the mill, the big tree",
    "hurt": "knee, foot, leg, arm, toe, nose, tail",
    "glue": "glue, tape, string, paint, nails, wood",
    "ill": "a cold, a fever, a cough, a sore foot, a bad tooth, the flu",
}
TABLES = {name: word_table(entries, WORD_EXPONENT) for name, entries in WORDS.items()}

FRAME = r"""
story:
    5 | <intro>\n<when> <plot>
    1 | <today>\n<soon> <plot>

intro:
    8 | Once upon a time, there was <who>. <told>
    4 | Once upon a time, <who> lived {hero:home}. {hero:She} <loved>
    2 | Once upon a time, {hero} the {hero:species} lived {hero:home}. {hero:She} <loved>
    2 | There once was <who>. <told>
    1 | Long ago, <who> lived {hero:home}. {hero:She} <loved>
    1 | {hero} was {hero:a trait} {hero:species}. <told>
    1 | Far away, {hero:home}, lived <who>. {hero:She} <loved>
    1 | Everyone {hero:home} knew {hero} the {hero:species}. {hero:She} <loved>

today:
    2 | One day, {hero} the {hero:species} was at home {hero:home}. {hero:She} <loved>
    2 | One {weather} day, <who> woke up. <told>
    1 | It was a {weather} day. {hero} the {hero:species} went for a walk {hero:home}.
    1 | It was a {weather} morning {hero:home}, where {hero} the {hero:species} lived.
who:
    4 | {size:a} {hero:species} named {hero}
    2 | {hero:a trait} {hero:species} named {hero}
    1 | {size:a} {hero:species} called {hero}
    1 | {hero:a trait} {hero:species} called {hero}
told:
    2 | {hero:She} lived {hero:home}.
    4 | {hero:She} lived {hero:home} and loved {hero:food}.
    4 | {hero:She} lived {hero:home} and liked to {hero:hobby}.
    1 | {hero:Her} home was {hero:home}.
    1 | {hero:She} <loved>
loved:
    3 | loved to {hero:hobby}.
    3 | loved {hero:food}.
    2 | always wore {hero:a colour} hat.
    2 | liked to {hero:hobby} and eat {hero:food}.
    1 | could {hero:hobby} very well.
    1 | was known for {hero:her} {hero:colour} hat.

when:
    5 | One day,
    2 | One {weather} day,
    2 | One {weather} morning,
    1 | One night,
    1 | One evening,
soon:
    Soon,
    After a while,
    A little later,
    Before long,

plot:
    5 | <lost>
    5 | <share>
    5 | <fear>
    4 | <gift>
    4 | <storm>
    4 | <stuck>
    3 | <promise>
    3 | <help>
    3 | <race>
    3 | <truth>
    3 | <garden>
    3 | <meet>
    2 | <noise>
    2 | <found>
    2 | <sick>

end:
    4 | They were friends from that day on.
    2 | {hero} and {friend} were happy all day.
    2 | {hero} went to bed with a smile.
    2 | They went home to eat {friend:food}.
    1 | {hero} ran back home {hero:home}.
    1 | They played {game} every day.
    1 | {friend} and {hero} laughed and laughed.
    1 | It was the best day ever.
    1 | The end.
comes:
    3 | {friend} the {friend:species}
    1 | {hero:her} friend {friend} the {friend:species}
    1 | {friend:a trait} {friend:species} named {friend}
    1 | {friend:a species} in {friend:a colour} hat named {friend}
brings:
    2 | {friend} the {friend:species}
    1 | Then {friend:a species} called {friend}
"""

RULES = FRAME + PLOTS
