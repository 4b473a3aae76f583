# SPDX-License-Identifier: Apache-2.0
"""Titles for made-up books, readable and each used once."""

from __future__ import annotations

__all__ = ["GENRES", "make_titles"]

# genre → words for the first and for the second half of a title
_WORDS: dict[str, tuple[str, str]] = {
    "mystery": (
        "Silent Locked Missing Crimson Hidden Midnight Broken Vanishing Second Forgotten",
        "Witness Letter Alibi Corridor Footprint Verdict Cellar Ledger Passenger Inheritance",
    ),
    "science fiction": (
        "Orbital Quantum Frozen Distant Last Infinite Hollow Artificial Drifting Parallel",
        "Colony Signal Horizon Engine Moon Archive Machine Station Voyage Cortex",
    ),
    "romance": (
        "Tender Secret Summer Stolen Unwritten Golden Reluctant Velvet Patient Moonlit",
        "Promise Waltz Heart Confession Serenade Engagement Kiss Harbour Reunion Valentine",
    ),
    "fantasy": (
        "Enchanted Shattered Ancient Whispering Ember Silver Cursed Thorned Starlit Runed",
        "Crown Dragon Forest Throne Amulet Citadel Prophecy Sword Griffin Spellbook",
    ),
    "history": (
        "Imperial Medieval Maritime Revolutionary Bronze Colonial Royal Northern Roman Divided",
        "Empire Treaty Dynasty Siege Republic Fleet Frontier Parliament Plague Chronicle",
    ),
    "cooking": (
        "Rustic Slow Spicy Weeknight Smoked Fresh Coastal Nordic Fermented Homemade",
        "Kitchen Table Bread Broth Pantry Oven Harvest Noodle Pickle Dessert",
    ),
    "travel": (
        "Alpine Desert Overland Wandering Island Winding Sunlit Remote Tropical Northbound",
        "Road Passport Railway Caravan Trail Lighthouse Compass Ferry Summit Backpack",
    ),
    "science": (
        "Curious Genetic Hidden Magnetic Living Cosmic Molecular Deep Elegant Chaotic",
        "Universe Cell Equation Ocean Brain Particle Climate Experiment Fossil Symmetry",
    ),
    "business": (
        "Lean Digital Bold Practical Global Disruptive Honest Strategic Frugal Resilient",
        "Startup Leader Market Negotiator Balance Brand Boardroom Investor Factory Habit",
    ),
    "poetry": (
        "Wild Wintering Blue Salt Quiet Burning Paper Ashen Feathered Weightless",
        "Verses Orchard River Lanterns Psalms Sparrows Rain Elegies Gardens Shadows",
    ),
    "children": (
        "Little Sleepy Grumpy Brave Bouncing Giggling Tiny Marvellous Muddy Polite",
        "Bear Rabbit Pirate Robot Hedgehog Puddle Balloon Owl Tractor Dinosaur",
    ),
    "gardening": (
        "Shady Edible Cottage Urban Perennial Walled Organic Climbing Drought-Proof Balcony",
        "Border Compost Rose Greenhouse Meadow Vegetable Pond Seedling Hedge Herb",
    ),
}
GENRES: tuple[str, ...] = tuple(_WORDS)


def make_titles(sizes: list[int]) -> tuple[list[str], list[str]]:
    """Titles and genres of all items, genre by genre.

    Args:
        sizes: number of items of each genre, for the first ``len(sizes)`` genres.

    Returns:
        The titles, all different, and the genre of each.
    """
    titles: list[str] = []
    genres: list[str] = []
    for genre, size in zip(GENRES, sizes, strict=False):
        firsts, seconds = (words.split() for words in _WORDS[genre])
        pairs = len(firsts) * len(seconds)
        for number in range(size):
            volume, place = divmod(number, pairs)
            # moving both words on at every step keeps neighbours from sharing one
            first = firsts[place % len(firsts)]
            second = seconds[(place + place // len(firsts)) % len(seconds)]
            titles.append(f"The {first} {second}" + (f", Volume {volume + 1}" if volume else ""))
            genres.append(genre)
    return titles, genres
