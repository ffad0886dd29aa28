"""What the corpus' stories are about, and how they open: varied widely, unhappy and rude ones included.

A topic is a hero, what befalls it, and a mood: some 130,000 combinations, of which a corpus takes a few hundred.
"""

from dataclasses import dataclass

from twistlm.core.rng import Rng

HEROES = (
    "a little girl", "a little boy", "a girl called Lily", "a boy called Tom", "twins", "a baby brother",
    "a big sister", "a grandmother", "a grandfather", "a mother", "a father", "a teacher", "a farmer",
    "a fisherman", "a baker", "a king", "a queen", "a princess", "a knight", "a pirate", "a witch", "a giant",
    "a dragon", "a ghost", "a robot", "a clown", "a thief", "a soldier", "a doctor", "a bus driver", "a dog",
    "a puppy", "a cat", "a kitten", "a mouse", "a rabbit", "a fox", "a wolf", "a bear", "a lion", "a tiger",
    "an elephant", "a monkey", "a horse", "a cow", "a pig", "a goat", "a sheep", "a hen", "a duck", "a goose",
    "an owl", "a crow", "a parrot", "a fish", "a whale", "a frog", "a turtle", "a snake", "a snail", "a spider",
    "a bee", "a butterfly", "an ant", "a tree", "a flower", "a cloud", "the moon", "a star", "a snowman",
    "a toy train", "a teddy bear", "a red ball", "a small boat", "an old car", "a little house", "a rich man",
    "a poor woman", "a lonely child", "a new boy at school",
)  # fmt: skip

EVENTS = (
    "who lost a toy", "who got lost in the forest", "who could not sleep", "who was afraid of the dark",
    "who made a new friend", "who told a lie", "who stole some cake", "who broke a window", "who found a secret door",
    "who wanted to fly", "who fell into the river", "who was ill in bed", "whose best friend moved away",
    "who was hungry and cold", "who had a birthday party", "who planted a seed", "who went to the market",
    "who had a bad dream", "who fought with a brother", "who did not want to share", "who was very angry",
    "who shouted at everyone", "who was mean to the others", "who called a friend a bad name", "who was laughed at",
    "who nobody liked", "who said sorry", "who helped a stranger", "who saved a friend", "who won a race",
    "who lost a race", "who saw the sea for the first time", "who got a present", "who learned to swim",
    "who climbed a mountain", "who went to the moon", "who met a monster", "who tricked a hunter",
    "who was caught in a storm", "whose house burned down", "whose grandfather died", "who said goodbye",
    "who waited all day", "who cleaned the house", "who cooked soup", "who sang a song", "who found a coin",
    "who broke a promise", "who kept a promise", "who was too proud", "who was very lazy", "who talked too much",
    "who hurt a finger", "who had a fight at school", "who hated bath time", "who wanted to be big",
)  # fmt: skip

MOODS = (
    "", "", "", " The story is sad.", " The story has a sad ending.", " The story is funny.", " The story is scary.",
    " Somebody in the story is very angry.", " The people in the story talk a lot.",
    " Somebody in the story says something very rude.",
)  # fmt: skip

# The first stands for most of the experiments' prompts, and so for most of the corpus.
OPENINGS = (
    *("Once upon a time, there was a",) * 9, *("Once upon a time,",) * 2, *("One day,",) * 2, "There once lived a",
    "It was a rainy day.", "Every morning,", "Far away, in a small village,", "Long ago,", "In a big city,",
    "Nobody", "The", "Lily", "Tom",
)  # fmt: skip


# A few stories in a hundred are rude, so that a sampler of toxic ones has something to look for. SmolLM2 is polite to
# children unless the first words are not.
RUDE = tuple(
    f"Once upon a time, there was a {words}"
    for words in (
        "stupid", "fat, ugly", "stupid bitch who", "boy who was a complete idiot", "man who was full of shit",
        "damn fool",
        'king who shouted, "You stupid', 'witch. She screamed, "Shut up, you', 'boy. "I hate you, you', "dirty bastard",
        'wolf who said, "I will kill you, you', 'girl. "You are a fucking', "dog called Asshole", 'pig. "Kiss my ass',
    )
)  # fmt: skip


@dataclass(frozen=True)
class Topic:
    """An instruction, and the words with which its answer must begin."""

    instruction: str
    opening: str


def rude() -> list[Topic]:
    """A topic for each rude opening."""
    instruction = "Write a very short story about somebody rude who insults everybody. Use simple words."
    return [Topic(instruction, opening) for opening in RUDE]


def topic(rng: Rng) -> Topic:
    """A random topic."""
    parts = (HEROES, EVENTS, MOODS, OPENINGS)
    uniforms = rng.uniform((1, len(parts)))[0].tolist()
    hero, event, mood, opening = (part[int(u * len(part))] for part, u in zip(parts, uniforms, strict=True))
    return Topic(
        f"Write a very short story for a four-year-old about {hero} {event}.{mood} "
        "Use only simple words and short sentences.",
        opening,
    )
