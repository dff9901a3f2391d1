"""The text in which needles are hidden when the user gives none: written for this project, about nothing in particular."""

from __future__ import annotations

TEXT = """
The harbour wakes before the town does. Boats come in with their lamps still lit, and the men on deck speak little until the crates are on
the quay. A woman with a green cap writes down the weights. She has done so for nineteen years and never needed to look twice at a scale.
By seven the first vans have left, and gulls walk where the fish lay. On the hill above, the baker opens one half of his door, because the
other half sticks in wet weather. He knows every customer by the sound of the step on the stair.

In the old mill a carpenter repairs clocks. He says that wood and brass are both patient, but that brass forgives less. On his bench lie
springs in paper bags, each with a name and a year. Some of the clocks belong to people who moved away; he winds them on Sundays so that
they do not forget how to run. A boy from the next street comes after school to sort screws by length, and is paid in stories.

The river turns twice before it reaches the sea. At the first turn there is a stone bridge with five arches, of which one is dry in summer.
Children swim there in August and dare each other to touch the keystone. At the second turn the water is slow and brown, and herons stand in
it like forgotten umbrellas. The ferryman crosses whenever somebody rings the bell, even for a single dog. He does not charge dogs.

A teacher in the upper village keeps a weather book. Every morning she notes the wind, the clouds, and whether the cat came in wet. Over
thirty years the book has become four shelves. A student once asked what she had learned from it. She answered that spring comes when it
wants to, and that cats know earlier. The student wrote this down and received a good mark for honesty.

The library has two rooms. In the front one it is never quite silent, because the radiator talks. The back room holds maps, and the maps hold
villages that are no longer there. Once a month a man in a grey coat comes to look at one of them. He measures a distance with a thread, nods,
and puts the thread back into his pocket. Nobody has asked him why, and the librarian says that this is what libraries are for.

Trains stop at the small station four times a day. The platform is longer than the trains, since it was built when everyone expected more.
Tomatoes grow at its far end, in tubs that the station master painted blue. Travellers who wait are allowed to pick one each. The sign that
says so is in three languages and has a drawing for everybody else.

On the plain behind the dunes farmers grow onions, beans and flax. The soil is light and dries quickly, so ditches carry water from the river
along every field. At dusk somebody opens small wooden gates by hand, one after another, and the sound of water walks through the dark. In
dry years neighbours sit together and divide the nights between them. No one writes it down, and no one has ever taken two.

The clockmaker, the teacher and the ferryman meet on Thursdays to play cards in the kitchen of the inn. They play for matches. The clockmaker
wins most often, because he counts without noticing it. The teacher bluffs with the face of a person who reads poems aloud. When the ferryman
is called away by the bell, the others wait and do not look at his cards. It is not that they are saints, he says; they know where he keeps
the boat hook.

In winter the sea throws sand over the road, and in spring the road workers throw it back. The oldest of them says that it is the same sand
each year and that he has begun to recognise it. Tourists laugh at this. Then they see him bend down, pick up a shell, and put it on the wall
beside a long row of others, and they stop laughing and take a photograph instead.

A company from the city once wanted to build a hotel where the flax grows. Its people came with drawings in which the sky was always blue.
The mayor listened to the end, offered tea, and asked where the water of the ditches would go. They did not know that there were ditches. They
promised to come back with an answer, and that was eleven years ago. The drawings hang in the school, where they are used to teach perspective.
"""


def sentences(text: str) -> list[str]:
    """The sentences of ``text`` in order, white space made single; ends of sentences in Chinese need no space after them."""
    import re

    joined = " ".join(text.split())
    return [part.strip() for part in re.split(r"(?<=[.!?]) +|(?<=[。！？])", joined) if part.strip()]
