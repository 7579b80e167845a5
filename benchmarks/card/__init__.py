"""The parts of `on_a_card.py`: what runs on a card, and how it becomes one table."""
