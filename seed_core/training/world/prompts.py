"""How people ask for things in the closed world: wordings of every request, and small talk."""

from __future__ import annotations

import random

from .sentences import capital

DRAW = (
    "Draw {}",
    "Draw {}",
    "Draw me {}",
    "Show me {}",
    "Can you generate an image of {}?",
    "Can you draw {}?",
    "Could you draw {} for me?",
    "Generate a picture of {}",
    "Generate {}",
    "Make an image of {}",
    "Make a picture of {}",
    "Create a picture showing {}",
    "Create {}",
    "Paint {}",
    "Paint me a picture of {}",
    "I want {}",
    "I would like to see {}",
    "I would like a picture of {}",
    "I need an image of {}",
    "Give me {}",
    "Let me see {}",
    "How about {}?",
    "A picture of {}",
    "An image of {}",
    "What does {} look like?",
    "Please draw {}",
    "Could you please paint {}?",
    "Now draw {}",
    "Sketch {}",
    "Imagine {}",
    "{}",
    "{}",
)
"""Requests for a drawing; {} is what it is to show."""

DESCRIBE = (
    "Describe this picture.",
    "Describe this picture.",
    "Describe this image.",
    "Describe the picture",
    "Describe it",
    "What do you see?",
    "What do you see in this picture?",
    "What does this picture show?",
    "What can you see here?",
    "Tell me about this picture.",
    "Tell me what you see.",
    "Give me a caption for this picture.",
    "Write a caption",
    "Caption this image.",
    "Can you describe this image?",
    "Put this picture into words",
)

WHAT = (
    "What is this?",
    "What is this?",
    "What is it?",
    "What is that?",
    "What's this?",
    "What is in this picture?",
    "What is in the picture?",
    "What is on the picture?",
    "What object is this?",
    "Name the object.",
    "Which object do you see?",
    "Tell me what this is.",
    "Can you tell me what this is?",
    "Do you know what this is?",
    "What are we looking at?",
    "What is shown here?",
    "Name it",
)

BACKGROUND = (
    "What color is the background?",
    "What color is the background?",
    "What colour is the background?",
    "Which color is the background?",
    "Which color does the background have?",
    "What is the background color?",
    "What is the color of the background?",
    "Tell me the color of the background.",
    "And the background?",
    "What is behind it?",
)

SIZE = (
    "How big is it?",
    "How big is it?",
    "How large is it?",
    "What size is it?",
    "What size does it have?",
    "Which size is it?",
    "Is it small, medium or big?",
    "Tell me the size.",
    "How big is the object?",
)

KIND = (
    "What kind of thing is this?",
    "What kind of object is it?",
    "Is it an animal, a plant, food or a thing?",
    "What category is it?",
)

EAT = ("Can you eat it?", "Can I eat it?", "Is it something to eat?", "Is this food?")

TO_BACKGROUND = (
    "Make the background {}",
    "Make the background {}",
    "Change the background to {}",
    "Change the background color to {}",
    "Give it {a} background",
    "Put it on {a} background",
    "Put it on {}",
    "Set the background to {}",
    "Use {a} background",
    "Now on {}",
    "The background should be {}",
    "Can you make the background {}?",
    "Could you change the background to {}?",
    "I want {a} background",
    "Same thing on {a} background",
    "Turn the background {}",
    "Color the background {}",
    "Paint the background {}",
)

TO_OBJECT = (
    "Turn it into {a}",
    "Turn it into {a}",
    "Change it to {a}",
    "Change it into {a}",
    "Make it {a}",
    "Replace it with {a}",
    "Replace the {old} with {a}",
    "Turn the {old} into {a}",
    "Change the {old} to {a}",
    "Swap the {old} for {a}",
    "Put {a} there instead",
    "I want {a} instead",
    "Now with {a}",
    "Make it {a} instead of {an_old}",
    "Can you turn it into {a}?",
    "Can you replace the {old} with {a}?",
    "Draw {a} instead",
)

TO_SIZE = (
    "Make it {}",
    "Make it {}",
    "Make the {name} {}",
    "Make it {} please",
    "Change the size to {}",
    "It should be {}",
    "Draw it {}",
    "I want it {}",
    "Can you make it {}?",
    "Can you make the {name} {}?",
    "Could it be {}?",
    "The same but {}",
)

BIGGER = (
    *("Make it bigger", "Make it bigger", "Make it larger", "Bigger", "A bit bigger please"),
    *("Enlarge it", "Make the {name} bigger", "Can you make it bigger?", "Scale it up", "Zoom in"),
)
SMALLER = (
    *("Make it smaller", "Make it smaller", "Smaller", "A bit smaller please", "Shrink it"),
    *("Make the {name} smaller", "Can you make it smaller?", "Scale it down", "Zoom out"),
)

TO_SIZE_AND_BACKGROUND = (
    "Make it {size} and the background {background}",
    "Make the background {background} and the {name} {size}",
    "Make it {size} on {background}",
    "{size} and on {a_background} background please",
)

COMBINE = (
    "Put the first object on the background of the second picture",
    "Put the first object on the background of the second picture",
    "Put the object of the first picture on the background of the second",
    "Show the first object on the second background",
    "Draw the object of the first picture with the background of the second picture",
    "Use the first object and the second background",
    "Combine the first object with the second background",
    "Give the first picture the background of the second picture",
)
COMBINE_SECOND = (
    "Put the second object on the background of the first picture",
    "Show the second object on the first background",
    "Put the object of the second picture on the background of the first",
    "Use the second object and the first background",
)

WHICH_PICTURE = (
    "What is in the {} picture?",
    "What is in the {} picture?",
    "What is in the {} image?",
    "What does the {} picture show?",
    "Name the object in the {} picture.",
    "What is the {} one?",
)
WHICH_DESCRIBE = ("Describe the {} picture.", "Describe the {} image.")
WHICH_BACKGROUND = (
    "What color is the background of the {} picture?",
    "Which background does the {} picture have?",
)
IS_IT = (
    "Is this {}?",
    "Is this {}?",
    "Is this {}?",
    "Is it {}?",
    "Is that {}?",
    "Does this picture show {}?",
    "Do you see {}?",
    "Is there {} in this picture?",
    "Is {} in the picture?",
)
IS_BACKGROUND = (
    "Is the background {}?",
    "Is the background {}?",
    "Is it on {}?",
    "Does it have a {} background?",
)
IS_SIZE = ("Is it {}?", "Is the object {}?", "Is it a {} one?")
IS_CATEGORY = ("Is this {}?", "Is it {}?", "Does this picture show {}?")

TALK = (
    (
        (
            "Hello",
            "Hi",
            "Hey",
            "Hello!",
            "Hi there",
            "Good morning",
            "Good evening",
            "Hello there!",
        ),
        "Hello! I can draw, describe and change small pictures.",
    ),
    (
        (
            *(
                "What can you do?",
                "What can you do",
                "How can you help me?",
                "Help",
                "How do you work?",
            ),
            *("What do you do?", "What are you good at?", "How are you?", "Can you help me?"),
        ),
        "I can draw a picture, describe a picture, answer questions about it and change it.",
    ),
    (
        (
            *("What can you draw?", "What do you know?", "Which objects do you know?"),
            *("What things can you draw?", "What should I ask for?", "What have you learned?"),
        ),
        "I know animals, plants, food and everyday things, for example a fox, a cactus, a pizza or "
        "a rocket.",
    ),
    (
        ("Who are you?", "What are you?", "What is your name?", "Tell me about yourself"),
        "I am seed-mini, a very small model that reads and writes images as 32 codes.",
    ),
    (
        (
            *(
                "Thank you",
                "Thanks",
                "Thanks!",
                "Thank you!",
                "Thank you very much",
                "Great, thanks",
            ),
            *("Nice", "Well done", "That is great", "I like it", "Very good", "Perfect!"),
        ),
        "You are welcome!",
    ),
    (("Goodbye", "Bye", "Bye bye", "See you", "Good night", "Goodbye!"), "Goodbye!"),
    (
        (
            *(
                "Tell me a joke",
                "What is the capital of France?",
                "What time is it?",
                "Sing a song",
            ),
            *("Write a poem", "What is two plus two?", "Who is the president?", "How old are you?"),
            *("What is the weather like?", "Translate this", "What is the meaning of life?"),
            *("Write a story", "Where do you live?", "What day is it?", "Do you like music?"),
        ),
        "Sorry, I only know about small pictures.",
    ),
)
"""What has nothing to do with a picture: how it may be said, and the answer."""


def ask_for(wording: str, chance: random.Random) -> str:
    """Return a wording as somebody may type it: with another first letter, please, or a full stop."""
    wording = capital(wording) if chance.random() < 0.85 else wording[0].lower() + wording[1:]
    if wording[-1] in ".!?":
        return wording.removesuffix("?") if chance.random() < 0.05 else wording
    if chance.random() < 0.05 and "please" not in wording.lower():
        wording += " please"
    roll = chance.random()
    if roll < 0.15:
        return wording + "."
    return wording + "!" if roll < 0.18 else wording
